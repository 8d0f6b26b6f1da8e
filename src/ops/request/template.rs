//! What a container asks of a template, by annotation. Pure.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::member::Member;
use super::shown;
use crate::error::{Error, Kind, Result};
use crate::ids::Name;

const TEMPLATE: &str = "run.regen.template";
const REQUIRED: &str = "run.regen.template.required";
const FUNCTION: &str = "run.regen.function";

/// Of which template a container is to be a clone.
///
/// As text, for whoever starts the container: `OWNER/NAME preferred`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRequest {
    /// Who asks. Whether another one's template will do is the administrator's choice.
    pub owner: Name,
    /// The template.
    pub name: Name,
    /// Whether it may start without.
    pub need: Need,
}

/// Whether a container may start without its template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It starts as ever then.
    Preferred,
    /// It does not start then.
    Required,
}

impl fmt::Display for TemplateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let need = match self.need {
            Need::Preferred => "preferred",
            Need::Required => "required",
        };
        write!(f, "{}/{} {need}", self.owner, self.name)
    }
}

impl FromStr for TemplateRequest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let damaged = || {
            let operation = format!("read which template is wanted, '{}'", text.escape_debug());
            Error::new(Kind::Damaged, operation, "it is not 'OWNER/NAME NEED'")
        };
        let (names, need) = text.split_once(' ').ok_or_else(damaged)?;
        let (owner, name) = names.split_once('/').ok_or_else(damaged)?;
        let need = match need {
            "preferred" => Need::Preferred,
            "required" => Need::Required,
            _ => return Err(damaged()),
        };
        Ok(Self { owner: owner.parse()?, name: name.parse()?, need })
    }
}

/// The template that a container's annotations name, and the function that it finds at `/function`.
///
/// # Errors
/// [`Kind::Invalid`] for one that is malformed, and for what says more about a template that none names.
pub fn choose_template(
    annotations: &HashMap<String, String>,
    owner: &Name,
) -> Result<Option<(TemplateRequest, Option<PathBuf>)>> {
    let get = |key: &str| annotations.get_key_value(key).map(|(key, value)| (key.as_str(), value.as_str()));
    let refuse = |(key, value): (&str, &str), cause: &str| Err(Error::new(Kind::Invalid, shown(key, value), cause));
    let Some((key, value)) = get(TEMPLATE) else {
        return match get(REQUIRED).or_else(|| get(FUNCTION)) {
            Some(stray) => {
                refuse(stray, "no template is named").map_err(|error: Error| error.next(format!("add {TEMPLATE}=NAME")))
            }
            None => Ok(None),
        };
    };
    let member = Member::read(annotations)?;
    if member.as_ref().is_some_and(Member::is_sandbox) {
        return Ok(None);
    }
    if value.contains('/') {
        return refuse((key, value), "a template is named without its owner here");
    }
    let name = value.parse().map_err(|error: Error| error.during(shown(key, value)))?;
    let need = match get(REQUIRED) {
        None | Some((_, "false")) => Need::Preferred,
        Some((_, "true")) => Need::Required,
        Some(other) => return refuse(other, "it is neither 'true' nor 'false'"),
    };
    let function = match get(FUNCTION) {
        Some(pair) if !pair.1.starts_with('/') => return refuse(pair, "it is no absolute path on the host"),
        other => other.map(|(_, path)| PathBuf::from(path)),
    };
    let owner = match &member {
        Some(member) => member.owner()?,
        None => owner.clone(),
    };
    Ok(Some((TemplateRequest { owner, name, need }, function)))
}

#[cfg(test)]
mod tests {
    use super::super::member::CONTAINERD;
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<(TemplateRequest, Option<PathBuf>)>> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        choose_template(&annotations, &"root".parse().unwrap())
    }

    #[test]
    fn all_values_are_read_and_kept_as_text() {
        assert_eq!(read(&[("run.regen.ring", "x")]).unwrap(), None);
        let (request, function) = read(&[(TEMPLATE, "py")]).unwrap().unwrap();
        assert_eq!((request.to_string().as_str(), function), ("root/py preferred", None));
        assert_eq!("root/py preferred".parse::<TemplateRequest>().unwrap(), request);
        let all = [(TEMPLATE, "py"), (REQUIRED, "true"), (FUNCTION, "/srv/f")];
        let (request, function) = read(&all).unwrap().unwrap();
        assert_eq!((request.to_string().as_str(), function), ("root/py required", Some("/srv/f".into())));
        assert_eq!("root/py required".parse::<TemplateRequest>().unwrap(), request);
        for damaged in ["", "root/py", "py required", "root/py maybe"] {
            assert!(damaged.parse::<TemplateRequest>().is_err(), "{damaged}");
        }
    }

    #[test]
    fn what_is_malformed_or_says_more_about_no_template_is_refused() {
        for bad in [
            vec![(TEMPLATE, "")],
            vec![(TEMPLATE, "other/py")],
            vec![(TEMPLATE, "py"), (REQUIRED, "yes")],
            vec![(TEMPLATE, "py"), (FUNCTION, "f")],
            vec![(REQUIRED, "true")],
            vec![(FUNCTION, "/srv/f")],
        ] {
            let error = read(&bad).expect_err(&format!("{bad:?} was taken"));
            assert!(error.to_string().contains("run.regen."), "{error}");
        }
    }

    #[test]
    fn a_pods_templates_are_its_namespaces_and_what_holds_its_namespaces_has_none() {
        let of = |kind| [(CONTAINERD[0], kind), (CONTAINERD[1], "web"), (CONTAINERD[2], "team"), (TEMPLATE, "py")];
        assert_eq!(read(&of("container")).unwrap().unwrap().0.to_string(), "k8s.team/py preferred");
        assert_eq!(read(&of("sandbox")).unwrap(), None);
    }
}
