//! Device rules as a program for the kernel (eBPF, type `BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! The program gets the sort, the numbers and the wanted access of one request. It goes through the rules from the last
//! to the first and strikes out what each allows, until nothing is wanted any more; a rule that denies something of
//! what is still wanted ends it. So each kind of access is decided by the last rule that speaks of it.

use super::{Rule, Sort, Verdict};
use crate::sys::bpf::Instruction;

// linux/bpf.h: class, operation and source of an instruction in one byte.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// Registers: 0 is the answer, 1 the request.
const ANSWER: u8 = 0;
const REQUEST: u8 = 1;
const SORT: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// `struct bpf_cgroup_dev_ctx`: access << 16 | sort, major, minor; sorts are 1 (block) and 2 (character).
const AT_SORT_AND_ACCESS: i16 = 0;
const AT_MAJOR: i16 = 4;
const AT_MINOR: i16 = 8;

/// The program of a list; `None` if it allows everything.
pub(super) fn generate(rules: &[Rule]) -> Option<Vec<Instruction>> {
    let (first, rest) = rules.split_first()?;
    let first_is_total = first.is_total();
    if first_is_total && first.verdict == Verdict::Allow && rest.is_empty() {
        return None;
    }
    let mut code = vec![
        load(SORT, AT_SORT_AND_ACCESS),
        copy(WANTED, SORT),
        operate(SHIFT_RIGHT, WANTED, 16),
        operate(AND, SORT, 0xffff),
        load(MAJOR, AT_MAJOR),
        load(MINOR, AT_MINOR),
    ];
    let (rules, otherwise) = if first_is_total { (rest, first.verdict) } else { (rules, Verdict::Deny) };
    rules.iter().rev().for_each(|rule| add_rule(rule, &mut code));
    code.extend(answer(otherwise));
    Some(code)
}

fn add_rule(rule: &Rule, code: &mut Vec<Instruction>) {
    let mut body = match rule.verdict {
        Verdict::Allow => vec![operate(AND, WANTED, !bits(rule.access.0)), jump(JUMP_NOT_EQUAL, WANTED, 0, 2)],
        Verdict::Deny => {
            vec![copy(SCRATCH, WANTED), operate(AND, SCRATCH, bits(rule.access.0)), jump(JUMP_EQUAL, SCRATCH, 0, 2)]
        }
    };
    body.extend(answer(rule.verdict));
    let sort = rule.sort.map(|sort| match sort {
        Sort::Block => 1,
        Sort::Character => 2,
    });
    let mut conditions = [(SORT, sort), (MAJOR, rule.major), (MINOR, rule.minor)];
    conditions.reverse();
    let mut whole = body;
    for (register, value) in conditions {
        let Some(value) = value else { continue };
        // A rule has at most eight instructions.
        let over = i16::try_from(whole.len()).unwrap_or(i16::MAX);
        whole.insert(0, jump(JUMP_NOT_EQUAL, register, bits(value), over));
    }
    code.extend(whole);
}

fn answer(verdict: Verdict) -> [Instruction; 2] {
    let value = match verdict {
        Verdict::Allow => 1,
        Verdict::Deny => 0,
    };
    [operate(MOVE, ANSWER, value), Instruction { code: EXIT, ..Instruction::default() }]
}

/// Numbers are compared as 64 bits with the sign extended; those of devices are far below that.
fn bits(value: u32) -> i32 {
    value.cast_signed()
}

fn load(to: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: to | REQUEST << 4, offset, immediate: 0 }
}

fn copy(to: u8, from: u8) -> Instruction {
    Instruction { code: MOVE_REGISTER, registers: to | from << 4, offset: 0, immediate: 0 }
}

fn operate(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn jump(code: u8, register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction { code, registers: register, offset, immediate }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::{decide, rules};
    use super::super::{Access, Rule};
    use super::*;

    /// Runs a program as the kernel would, on one request.
    fn run(code: &[Instruction], sort: Sort, major: u32, minor: u32, access: u32) -> bool {
        let sort = if sort == Sort::Block { 1 } else { 2 };
        let request = [access << 16 | sort, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        for _ in 0..code.len() {
            let Instruction { code: operation, registers: pair, offset, immediate } = code[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let constant = i64::from(immediate).cast_unsigned();
            at += 1;
            match operation {
                LOAD_WORD => registers[to] = u64::from(request[usize::try_from(offset).unwrap() / 4]),
                MOVE => registers[to] = constant,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= constant,
                SHIFT_RIGHT => registers[to] >>= constant,
                JUMP_EQUAL if registers[to] == constant => at += usize::try_from(offset).unwrap(),
                JUMP_NOT_EQUAL if registers[to] != constant => at += usize::try_from(offset).unwrap(),
                JUMP_EQUAL | JUMP_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
        panic!("it does not end");
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let number = || prop_oneof![Just(None), (0_u32..4).prop_map(Some)];
        let sort = prop_oneof![Just(None), Just(Some(Sort::Block)), Just(Some(Sort::Character))];
        let verdict = prop_oneof![Just(Verdict::Allow), Just(Verdict::Deny)];
        (verdict, sort, number(), number(), 0_u32..8).prop_map(|(verdict, sort, major, minor, access)| Rule {
            verdict,
            sort,
            major,
            minor,
            access: Access(access),
        })
    }

    proptest! {
        #[test]
        fn a_program_decides_as_its_list_does(
            list in prop::collection::vec(any_rule(), 1..12),
            block in any::<bool>(), major in 0_u32..4, minor in 0_u32..4, access in 1_u32..8,
        ) {
            let sort = if block { Sort::Block } else { Sort::Character };
            let start = list.iter().rposition(Rule::is_total).unwrap_or(0);
            let program = generate(&list[start..]);
            let decided = program.is_none_or(|code| run(&code, sort, major, minor, access));
            prop_assert_eq!(decided, decide(&list, sort, major, minor, access));
        }
    }

    #[test]
    fn a_list_that_allows_everything_needs_no_program() {
        assert!(generate(&rules(json!([{"allow": true}]))).is_none());
        assert!(generate(&rules(json!([]))).is_some());
    }
}
