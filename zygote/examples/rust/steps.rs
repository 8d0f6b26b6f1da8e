//! A template in Rust: it counts, for all numbers up to a million, the steps to 1 (half of an even one, three times an odd
//! one and one more), and each clone only looks them up.
//!
//! ```text
//! steps 6 27                  prints 8 and 111
//! steps:count, event 27       a call: the same for one number
//! ```

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::Write;
use std::sync::OnceLock;

const LIMIT: usize = 1_000_000;

static STEPS: OnceLock<Vec<u32>> = OnceLock::new();

/// `struct regen_call`
#[repr(C)]
struct Call {
    handler: *const c_char,
    event: *const c_char,
    event_length: usize,
}

type Entry = extern "C" fn(c_int, *mut *mut c_char, *const Call) -> c_int;

#[link(name = "regen_zygote", kind = "static")]
unsafe extern "C" {
    fn regen_zygote_serve(entry: Entry, language: *const c_char) -> c_int;
    fn regen_call_result(json: *const c_char, length: usize) -> c_int;
    fn regen_call_error(kind: *const c_char, message: *const c_char) -> c_int;
}

fn count_steps() -> Vec<u32> {
    let mut steps = vec![0_u32; LIMIT];
    for start in 2..LIMIT {
        let (mut number, mut count) = (start, 0);
        while number >= start {
            number = if number % 2 == 0 { number / 2 } else { 3 * number + 1 };
            count += 1;
        }
        steps[start] = count + steps[number];
    }
    steps
}

fn look_up(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|number| (1..LIMIT).contains(number));
    let number: usize = number.ok_or_else(|| format!("'{text}' is no number from 1 to {}", LIMIT - 1))?;
    Ok(STEPS.get_or_init(count_steps)[number])
}

/// What the program does with its arguments; gives its exit status.
fn program(arguments: &[String]) -> c_int {
    for argument in arguments {
        match look_up(argument) {
            Ok(steps) => println!("{steps}"),
            Err(error) => {
                eprintln!("steps: {error}");
                return 2;
            }
        }
    }
    0
}

fn answer(handler: &str, event: &str) -> c_int {
    let failed = |kind: &CStr, message: String| {
        let message = CString::new(message).unwrap_or_default();
        // SAFETY: both end with NUL and live longer than the call.
        unsafe { regen_call_error(kind.as_ptr(), message.as_ptr()) };
        1
    };
    if handler != "steps:count" {
        return failed(c"HandlerNotFound", "there is only 'steps:count'".to_owned());
    }
    match look_up(event) {
        Err(error) => failed(c"EventNotNumber", error),
        Ok(steps) => {
            let json = steps.to_string();
            // SAFETY: the pointer is to that many bytes.
            unsafe { regen_call_result(json.as_ptr().cast(), json.len()) }.abs()
        }
    }
}

/// The text behind a pointer of the library's.
///
/// # Safety
/// It is one, to a string that ends with NUL.
unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

extern "C" fn entry(count: c_int, arguments: *mut *mut c_char, call: *const Call) -> c_int {
    // SAFETY: the library gives NULL, or a call that lives as long as the process.
    let status = match unsafe { call.as_ref() } {
        // SAFETY: its strings do so too.
        Some(call) => answer(&unsafe { text(call.handler) }, &unsafe { text(call.event) }),
        None => {
            let count = usize::try_from(count).unwrap_or_default();
            // SAFETY: there are that many, each a string.
            let arguments = (1..count).map(|index| unsafe { text(*arguments.add(index)) });
            program(&arguments.collect::<Vec<_>>())
        }
    };
    // The library ends the clone as exit(3) does, and of that this buffer hears nothing.
    let _ = std::io::stdout().flush();
    status
}

fn main() {
    STEPS.get_or_init(count_steps);
    if std::env::var_os("REGEN_OCI_ZYGOTE").is_none() {
        std::process::exit(program(&std::env::args().skip(1).collect::<Vec<_>>()));
    }
    // SAFETY: the text ends with NUL, and this is the only thread.
    std::process::exit(unsafe { regen_zygote_serve(entry, c"rust".as_ptr()) });
}
