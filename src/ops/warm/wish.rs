//! What a container's annotations say about a template, at its creation: nothing is done about it but to write it down,
//! and to show the container its function.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use oci_spec::runtime::Spec;

use super::FUNCTION_INSIDE;
use crate::bundle::bind::show;
use crate::error::{Context, Error, Kind, Result};
use crate::ops::request::{Need, TemplateRequest, choose_template};
use crate::ops::{Place, function};
use crate::program::{Activation, Intercept};
use crate::runtime::CreateRequest;

/// What a container's annotations ask for.
#[derive(Debug)]
pub(in crate::ops) struct Wanted {
    request: TemplateRequest,
    /// Its function, as a mount that is attached nowhere yet.
    function: Option<OwnedFd>,
}

/// Reads the annotations, and mounts the function that they name.
///
/// # Errors
/// As [`choose_template`], and those of the function.
pub(in crate::ops) fn plan(
    place: &Place,
    annotations: &HashMap<String, String>,
    spec: &mut Spec,
) -> Result<Option<Wanted>> {
    let Some((request, function)) = choose_template(annotations, &place.owner)? else { return Ok(None) };
    let opened = function.as_deref().map(|function| function::open_allowed(place, function)).transpose()?;
    if let Some(function) = function {
        // Where it comes from is for whoever reads the specification.
        show(spec, &function, FUNCTION_INSIDE, &[]);
    }
    Ok(Some(Wanted { request, function: opened }))
}

/// Writes down, for whoever starts the container, what its program is to be a clone of; unless it cannot be one. Its
/// function it gets in any case.
///
/// # Errors
/// [`Kind::Unsupported`] for a container that may not start without its template.
pub(in crate::ops) fn note(wanted: Option<&Wanted>, request: &mut CreateRequest) -> Result<()> {
    let Some(Wanted { request: template, function }) = wanted else { return Ok(()) };
    if let Some(function) = function {
        let tree = function.try_clone().context(|| "hold the function")?;
        request.mounted.push((FUNCTION_INSIDE.into(), tree));
    }
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
