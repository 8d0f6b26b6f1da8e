//! Which container a run belongs to, where containers may be renamed.

use super::Place;
use super::load::Attachment;
use super::save::attachment;
use crate::error::Result;
use crate::ids::{ContainerId, LayerId};
use crate::runtime::{self, StateRoot};
use crate::store::{Run, Store};

/// Notes in the run of a renamed container what that is called now. Until then the run has its former name, which costs
/// whoever looks for the container a little longer.
///
/// # Errors
/// [`crate::error::Kind::NotFound`] if there is no such container; those of reading and writing the run.
pub fn note(place: &Place, id: &ContainerId) -> Result<()> {
    let Some(attachment) = attachment(place, id)? else { return Ok(()) };
    let Some(store) = Store::open_existing(&attachment.store)? else { return Ok(()) };
    let Some(mut run) = Run::load(&store, &attachment.run)? else { return Ok(()) };
    if run.record.container == *id {
        return Ok(());
    }
    run.record.container = id.clone();
    run.write()
}

/// What the container of a run is called now.
///
/// # Errors
/// Those of reading the state root.
pub(super) fn container_of(run: &Run) -> Result<ContainerId> {
    let root = StateRoot::new(&run.record.state_root);
    let noted = run.record.container.clone();
    if is_of(run.id(), runtime::attachment(&root, &noted)) {
        return Ok(noted);
    }
    let mut others = runtime::list(&root)?.into_iter();
    let found = others.find(|listed| is_of(run.id(), listed.state.as_ref().map(|state| state.attachment.clone())));
    Ok(found.map_or(noted, |listed| listed.id))
}

fn is_of<E>(run: &LayerId, attachment: std::result::Result<Option<serde_json::Value>, E>) -> bool {
    let attachment = attachment.ok().flatten().and_then(|value| serde_json::from_value::<Attachment>(value).ok());
    attachment.is_some_and(|attachment| attachment.run == *run)
}
