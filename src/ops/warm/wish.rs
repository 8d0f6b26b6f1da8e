//! What a container's annotations say about a template, at its creation: nothing is done about it but to write it down,
//! and to show the container its function.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{Mount, Spec};

use crate::error::{Error, Kind, Result};
use crate::ops::request::{Need, TemplateRequest, choose_template};
use crate::ops::{Place, function};
use crate::program::{Activation, Intercept};
use crate::runtime::CreateRequest;

/// Where a function is, in the container.
const FUNCTION: &str = "/function";

/// Reads the annotations, and mounts the function that they name.
///
/// # Errors
/// As [`choose_template`], and those of the function.
pub(in crate::ops) fn plan(
    place: &Place,
    annotations: &HashMap<String, String>,
    spec: &mut Spec,
) -> Result<Option<TemplateRequest>> {
    let Some((request, function)) = choose_template(annotations, &place.owner)? else { return Ok(None) };
    if let Some(function) = function {
        show(spec, &function::locate(place, &function)?);
    }
    Ok(Some(request))
}

fn show(spec: &mut Spec, function: &Path) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let mut mount = Mount::default();
    mount.set_destination(FUNCTION.into());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(function.to_owned()));
    mount.set_options(Some(["bind", "ro", "nosuid", "nodev", "private"].map(str::to_owned).to_vec()));
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
}

/// Writes down, for whoever starts the container, what its program is to be a clone of; unless it cannot be one.
///
/// # Errors
/// [`Kind::Unsupported`] for a container that may not start without its template.
pub(in crate::ops) fn note(template: Option<&TemplateRequest>, request: &mut CreateRequest) -> Result<()> {
    let Some(template) = template else { return Ok(()) };
    let activated = Activation::of_environment().is_some() || !request.listen.is_empty();
    if !activated && request.preserve_fds == 0 && request.intercept == Intercept::No {
        request.memo = Some(template.to_string());
        return Ok(());
    }
    let operation = format!("start it from template '{}'", template.name);
    let error = Error::new(Kind::Unsupported, operation, "a clone cannot have descriptors of its runtime's caller");
    match template.need {
        Need::Required => Err(error.next("leave out --preserve-fds, sockets and run.regen.template.required")),
        Need::Preferred => {
            tracing::warn!("container '{}' starts without its template: {error}", request.id);
            Ok(())
        }
    }
}
