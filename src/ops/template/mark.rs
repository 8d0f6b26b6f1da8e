//! What the source of a template is now: a word that is another one once the template has to be made anew.

use crate::bundle::Bundle;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::RingName;
use crate::image::ImageSource;
use crate::image::open::identify;
use crate::ops::Place;
use crate::ops::request::RingRequest;
use crate::ops::warm::snapshot;
use crate::ring::Ring;
use crate::ring::selector::{Selected, Selector};
use crate::ring::state::RingState;
use crate::store::Store;
use crate::template::definition::{Definition, Mode, Source};
use crate::template::proxy;

/// Refuses at once what would fail later, and says it better.
///
/// # Errors
/// [`Kind::NotFound`] if the source or the ring is not there, [`Kind::Unsupported`] for what cannot be had here.
pub(super) fn check(definition: &Definition, place: &Place) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::new(Kind::Unsupported, "make it", "templates need root").next("call it as root"));
    }
    match definition.mode {
        Mode::Zygote => {}
        Mode::Snapshot => snapshot::admit(definition)?,
    }
    match &definition.source {
        Source::Bundle(path) | Source::Rootfs(path) if !path.is_dir() => {
            let cause = if path.exists() { "it is not a directory" } else { "no such file or directory" };
            return Err(Error::new(Kind::NotFound, format!("open {}", quote(path)), cause));
        }
        // One with a user namespace would fail at something else first.
        Source::Bundle(path) if definition.mode == Mode::Zygote => {
            let spec = Bundle::load(path)?.spec;
            let misfit = |error: Error| error.during(format!("use bundle {}", quote(path))).next("give another one");
            proxy::plan(&spec).map_err(misfit)?;
        }
        Source::Bundle(_) | Source::Rootfs(_) | Source::Image(_) => {}
    }
    read(definition, place).map(drop)
}

/// Whether the word may be another one later.
pub(super) fn moves(definition: &Definition) -> bool {
    definition.ring.is_some() || matches!(definition.source, Source::Image(_))
}

/// The word. A directory that was named is taken as it is: nobody says when it is another one.
///
/// # Errors
/// [`Kind::NotFound`] if the source is not there.
pub(super) fn read(definition: &Definition, place: &Place) -> Result<Option<String>> {
    let source = match &definition.source {
        Source::Bundle(_) | Source::Rootfs(_) => None,
        Source::Image(image) => Some(identify(&image.parse::<ImageSource>()?)?),
    };
    let entry = definition.ring.as_deref().map(|ring| entry(ring, place)).transpose()?;
    Ok(match (source, entry) {
        (Some(source), Some(entry)) => Some(format!("{source} {entry}")),
        (one, other) => one.or(other),
    })
}

/// What a ring's entry was made over, for who names nothing else.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such ring or entry; [`Kind::Usage`] if that was no single directory.
pub(super) fn base(ring: &str, place: &Place) -> Result<Source> {
    let (name, state, selector) = open(ring, place)?;
    let operation = || format!("look at ring '{name}'");
    let refuse = |cause: &str| {
        Error::new(Kind::Usage, operation(), cause).next("say what it was made over: --rootfs, --image or --bundle")
    };
    let Selected::Entry(entry) = state.select_start(&selector).context(operation)? else {
        return Err(refuse("it has no saved state"));
    };
    match state.base_directories(&entry.base).as_deref() {
        Some([directory]) => Ok(Source::Rootfs(directory.clone())),
        Some(_) => Err(refuse("it was made over an image")),
        None => Err(refuse("what it was made over is not there")),
    }
}

fn open(text: &str, place: &Place) -> Result<(RingName, RingState, Selector)> {
    let RingRequest { ring, selector, .. } = RingRequest::parse(text, &place.owner)?;
    let operation = || format!("look at ring '{ring}'");
    let missing = || Error::new(Kind::NotFound, operation(), "there is no such ring").next("see 'regen ring ls'");
    let store = Store::open_existing(&place.store)?.ok_or_else(missing)?;
    let state = Ring::open(&store, &ring).and_then(|ring| ring.read()).context(operation)?;
    Ok((ring, state, selector))
}

/// `root/alice@7`, or `root/alice@base`.
fn entry(text: &str, place: &Place) -> Result<String> {
    let (ring, state, selector) = open(text, place)?;
    Ok(match state.select_start(&selector).context(|| format!("look at ring '{ring}'"))? {
        Selected::Base => format!("{ring}@base"),
        Selected::Entry(entry) => format!("{ring}@{}", entry.seq),
    })
}
