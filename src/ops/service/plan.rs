//! What is decided before anything is done: names of instances, what an upgrade changes.

use semver::Version;
use sha2::{Digest, Sha256};

use super::record::Key;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::service::definition::Definition;
use crate::service::settings::Settings;

/// The longest id of a container.
const ID_MAX: usize = 200;
/// The longest version: it is part of ids.
const VERSION_MAX: usize = 100;

/// Whether an older version may take the place of a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Downgrade {
    /// If it is meant.
    Allowed,
    /// Not by accident.
    Refused,
}

/// The new version, on the addresses of the old one.
///
/// # Errors
/// [`Kind::Usage`] for what contradicts itself, for an older version, or if nothing says what to run.
pub(super) fn upgrade(old: &Definition, to: Version, changes: Settings, downgrade: Downgrade) -> Result<Definition> {
    let operation = || format!("upgrade service '{old}' to {to}");
    let older = to.cmp_precedence(&old.version).is_lt();
    if older && downgrade == Downgrade::Refused {
        let cause = format!("{to} is older than {}", old.version);
        return Err(Error::new(Kind::Usage, operation(), cause).next("give --allow-downgrade if that is meant"));
    }
    let new = changes.apply(old, to.clone());
    if new.source.is_none() {
        let cause = "the running program was adopted, and nothing says what the new one is made from";
        return Err(Error::new(Kind::Usage, operation(), cause)
            .next("give --rootfs DIR, --image IMAGE or --bundle DIR, and a command after '--'"));
    }
    check(&new)?;
    Ok(new)
}

/// Checks what a service is to be.
///
/// # Errors
/// As [`Definition::check`]; [`Kind::Invalid`] for a version that is too long.
pub(super) fn check(definition: &Definition) -> Result<()> {
    let length = definition.version.to_string().len();
    if length > VERSION_MAX {
        let cause = format!("its version has {length} characters, at most {VERSION_MAX} are possible");
        return Err(Error::new(Kind::Invalid, format!("define service '{}'", definition.name), cause));
    }
    definition.check()
}

/// The id of an instance: `NAME-VERSION-GENERATION`. Of a long name only the beginning, and a digest of the whole.
pub(super) fn instance_id(key: &Key, generation: u64) -> Result<ContainerId> {
    let (name, end) = (key.name.as_str(), format!("-{}-{generation}", key.version));
    if name.len() + end.len() <= ID_MAX {
        return format!("{name}{end}").parse();
    }
    let digest: String = Sha256::digest(name).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    // Names are ASCII.
    let kept = ID_MAX.saturating_sub(end.len() + digest.len() + 1);
    format!("{}-{digest}{end}", &name[..kept.min(name.len())]).parse()
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;
    use crate::service::definition::Source;

    fn key(name: &str, version: &str) -> Key {
        Key { name: name.parse().unwrap(), version: version.parse().unwrap() }
    }

    #[test]
    fn an_instance_is_named_after_its_service() {
        assert_eq!(instance_id(&key("web", "1.2.0-rc.1+b7"), 12).unwrap().as_str(), "web-1.2.0-rc.1+b7-12");
        let (one, other) = ("x".repeat(199) + "a", "x".repeat(199) + "b");
        let (one, other) =
            (instance_id(&key(&one, "1.0.0"), 1).unwrap(), instance_id(&key(&other, "1.0.0"), 1).unwrap());
        assert_eq!((one.as_str().len(), other.as_str().len()), (ID_MAX, ID_MAX));
        assert_ne!(one, other, "cut names stay apart");
        assert!(one.as_str().ends_with("-1.0.0-1"));
    }

    #[test]
    fn an_older_version_has_to_be_meant() {
        let old = record().definition;
        let to = |downgrade| upgrade(&old, Version::new(1, 1, 0), Settings::default(), downgrade);
        let line = to(Downgrade::Refused).unwrap_err().to_string();
        assert_eq!(
            line,
            "upgrade service 'web@1.2.0' to 1.1.0: 1.1.0 is older than 1.2.0: give --allow-downgrade if that is meant"
        );
        assert_eq!(to(Downgrade::Allowed).unwrap().version, Version::new(1, 1, 0));
    }

    #[test]
    fn what_was_adopted_is_upgraded_by_saying_what_to_run() {
        let old = Definition { source: None, ..record().definition };
        let to = |settings| upgrade(&old, Version::new(2, 0, 0), settings, Downgrade::Refused);
        let error = to(Settings::default()).unwrap_err();
        assert!(error.to_string().contains("give --rootfs DIR"), "{error}");
        assert!(to(Settings { source: Some(Source::Rootfs("/r".into())), ..Settings::default() }).is_ok());
    }

    #[test]
    fn a_version_that_is_too_long_is_refused() {
        let mut definition = record().definition;
        definition.version.build = semver::BuildMetadata::new(&"b".repeat(VERSION_MAX)).unwrap();
        assert_eq!(check(&definition).unwrap_err().kind(), Kind::Invalid);
    }
}
