//! Which version a client is sent to: `orders@^1.2` is the newest that serves and satisfies.
//!
//! A requirement is what Cargo takes (the crate semver): `1.2` and `1.2.3` mean `^1.2` and `^1.2.3`, so a compatible
//! newer version satisfies them; `=1.2.3` is that version alone; `~1.2`, `1.*`, `>=1.2, <2`; `*` or nothing is any.
//! Three rules follow from semver.org:
//!
//! - **Newest** is by precedence (semver.org, 11). Versions that differ in build metadata only are equals, which take
//!   turns. Only `=1.2.3+BUILD` names one of them; metadata behind other operators says nothing.
//! - **Pre-releases** are taken only when asked for: `1.3.0-rc.1` satisfies `^1.3.0-rc.1`, not `^1.2` and not `*`.
//! - **Compatible** is what a caret takes: the left-most part that is not zero stays.

use std::fmt;
use std::str::FromStr;

use semver::{BuildMetadata, Comparator, Op, Version, VersionReq};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ids::Name;

/// The most names or versions that an error lists.
const LISTED: usize = 20;

/// What a client asks for: `NAME@REQ`, or `NAME` for any version of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Wanted {
    /// The service.
    pub name: Name,
    /// Which of its versions.
    pub requirement: Requirement,
}

/// What a version has to satisfy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Requirement {
    comparators: VersionReq,
    /// Set if the requirement is one build of one version.
    build: Option<BuildMetadata>,
}

/// Any version that is no pre-release.
impl Default for Requirement {
    fn default() -> Self {
        Self { comparators: VersionReq::STAR, build: None }
    }
}

impl Requirement {
    /// Whether this version satisfies it.
    #[must_use]
    pub fn is_satisfied_by(&self, version: &Version) -> bool {
        self.comparators.matches(version) && self.build.as_ref().is_none_or(|build| *build == version.build)
    }

    /// Whether nothing but its being a pre-release keeps this version from satisfying it.
    fn wants_only_its_release(&self, version: &Version) -> bool {
        let release = Version::new(version.major, version.minor, version.patch);
        !version.pre.is_empty() && !self.is_satisfied_by(version) && self.is_satisfied_by(&release)
    }
}

impl FromStr for Requirement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let comparators = VersionReq::parse(text).map_err(|error| {
            let shown: String = text.chars().take(150).collect();
            Error::new(Kind::Invalid, format!("read requirement '{}'", shown.escape_debug()), error.to_string())
                .next("give for example ^1.2, =1.2.3, '>=1.2, <2' or '*'")
        })?;
        let build = match comparators.comparators.as_slice() {
            [Comparator { op: Op::Exact, patch: Some(_), .. }] => {
                text.split_once('+').and_then(|(_, build)| BuildMetadata::new(build.trim()).ok())
            }
            _ => None,
        };
        Ok(Self { comparators, build })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.comparators)?;
        self.build.as_ref().map_or(Ok(()), |build| write!(f, "+{build}"))
    }
}

impl TryFrom<String> for Requirement {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> Self {
        requirement.to_string()
    }
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('@') {
            Some((name, requirement)) => Ok(Self { name: name.parse()?, requirement: requirement.parse()? }),
            None => Ok(Self { name: text.parse()?, requirement: Requirement::default() }),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.requirement)
    }
}

impl TryFrom<String> for Wanted {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Wanted> for String {
    fn from(wanted: Wanted) -> Self {
        wanted.to_string()
    }
}

/// Those of the newest precedence that satisfy the requirement, out of candidates that are sorted by version, oldest
/// first; empty if none does.
pub fn newest<'a, T>(sorted: &'a [T], version: impl Fn(&T) -> &Version, requirement: &Requirement) -> &'a [T] {
    let satisfies = |candidate: &&T| requirement.is_satisfied_by(version(candidate));
    let Some(last) = sorted.iter().rposition(|candidate| satisfies(&candidate)) else { return &[] };
    // Build metadata sorts last, so equals lie side by side, and those that one build is asked of as well.
    let equal = |candidate: &&T| {
        satisfies(candidate) && version(candidate).cmp_precedence(version(&sorted[last])) == std::cmp::Ordering::Equal
    };
    let count = sorted[..=last].iter().rev().take_while(equal).count();
    &sorted[last + 1 - count..=last]
}

/// Whether clients that ask for `^old` are content with `new` in its place. They are not with a pre-release of a later
/// version.
#[must_use]
pub fn is_compatible(old: &Version, new: &Version) -> bool {
    let caret = Comparator {
        op: Op::Caret,
        major: old.major,
        minor: Some(old.minor),
        patch: Some(old.patch),
        pre: old.pre.clone(),
    };
    caret.matches(new)
}

/// Why nothing can be given: versions of the service serve, and none satisfies.
pub fn refuse_version<'a>(wanted: &Wanted, serving: impl IntoIterator<Item = &'a Version>) -> Error {
    let mut serving: Vec<&Version> = serving.into_iter().collect();
    serving.sort_unstable();
    serving.dedup();
    let Wanted { name, requirement } = wanted;
    let (verb, hidden) = (if serving.len() == 1 { "is" } else { "are" }, serving.len().saturating_sub(LISTED));
    let more = if hidden > 0 { format!("{hidden} older ones and ") } else { String::new() };
    let list: Vec<_> = serving[hidden..].iter().map(ToString::to_string).collect();
    let cause =
        format!("service '{name}' has no version that satisfies {requirement}: there {verb} {more}{}", list.join(", "));
    let error = Error::new(Kind::NotFound, format!("resolve '{wanted}'"), cause);
    match serving.iter().rfind(|version| requirement.wants_only_its_release(version)) {
        Some(version) => error.next(format!("ask for a pre-release by name: {name}@{version}")),
        None => error,
    }
}

/// Why nothing can be given: no version of the service serves. `known` are the services of which one does.
pub fn refuse_name<'a>(wanted: &Wanted, known: impl IntoIterator<Item = &'a Name>) -> Error {
    let cause = format!("no version of service '{}' is serving", wanted.name);
    let error = Error::new(Kind::NotFound, format!("resolve '{wanted}'"), cause);
    let near = near(wanted.name.as_str(), known.into_iter().map(Name::as_str));
    if near.is_empty() { error } else { error.next(format!("did you mean {}", near.join(" or "))) }
}

/// The three names that are most like this one, quoted; none that is quite different.
fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let tolerated = name.len().div_ceil(3);
    let alike = known.into_iter().filter_map(|other| {
        let part = name.len() > 2 && other.len() > 2 && (other.contains(name) || name.contains(other));
        let differing = if part { 1 } else { difference(name.as_bytes(), other.as_bytes(), tolerated)? };
        Some((differing, other))
    });
    let mut alike: Vec<_> = alike.collect();
    alike.sort_unstable();
    alike.into_iter().take(3).map(|(_, other)| format!("'{other}'")).collect()
}

/// How many letters have to be put in, taken out, replaced or exchanged with their neighbour to make one of the other;
/// `None` if more than `tolerated`.
fn difference(one: &[u8], other: &[u8], tolerated: usize) -> Option<usize> {
    if one.len().abs_diff(other.len()) > tolerated {
        return None;
    }
    // Rows of the usual table: the two before the current one are all that is needed.
    let mut rows = [Vec::new(), (0..=other.len()).collect::<Vec<usize>>()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = rows[1][j] + usize::from(a != b);
            let mut least = replaced.min(rows[1][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[0][j - 1] + 1);
            }
            row.push(least);
        }
        rows = [std::mem::take(&mut rows[1]), row];
    }
    let least = rows[1][other.len()];
    (least <= tolerated).then_some(least)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions(text: &str) -> Vec<Version> {
        let mut versions: Vec<Version> = text.split_whitespace().map(|text| text.parse().unwrap()).collect();
        versions.sort();
        versions
    }

    fn chosen(requirement: &str, among: &str) -> String {
        let (among, requirement) = (versions(among), requirement.parse().unwrap());
        let chosen: Vec<_> = newest(&among, |version| version, &requirement).iter().map(Version::to_string).collect();
        chosen.join(" ")
    }

    #[test]
    fn the_newest_version_that_satisfies_is_chosen() {
        let there = "1.2.0 1.2.9 1.10.0 2.0.1 0.3.1 0.4.0";
        for (requirement, expected) in [
            ("*", "2.0.1"),
            ("^1", "1.10.0"),
            ("1", "1.10.0"),
            ("1.2", "1.10.0"),
            ("1.2.3", "1.10.0"),
            ("~1.2", "1.2.9"),
            ("1.2.*", "1.2.9"),
            ("=1.2.0", "1.2.0"),
            ("=1.2", "1.2.9"),
            (">=1.2, <1.10", "1.2.9"),
            ("^0.3", "0.3.1"),
            ("<1", "0.4.0"),
            ("^3", ""),
            ("=1.2.3", ""),
        ] {
            assert_eq!(chosen(requirement, there), expected, "{requirement}");
        }
    }

    #[test]
    fn builds_of_one_version_are_equals_and_one_of_them_can_be_named() {
        let there = "1.2.0+a 1.2.0+b 1.2.0 1.1.0+z";
        assert_eq!(chosen("^1", there), "1.2.0 1.2.0+a 1.2.0+b");
        assert_eq!(chosen("=1.2.0", there), "1.2.0 1.2.0+a 1.2.0+b");
        assert_eq!(chosen("=1.2.0+a", there), "1.2.0+a");
        assert_eq!(chosen("=1.2.0+c", there), "");
        assert_eq!(chosen("1.2.0+c", there), "1.2.0 1.2.0+a 1.2.0+b");
    }

    #[test]
    fn a_pre_release_is_given_to_those_who_ask_for_it() {
        let there = "1.2.0 1.3.0-rc.1 1.3.0-rc.2";
        assert_eq!(chosen("*", there), "1.2.0");
        assert_eq!(chosen("^1.2", there), "1.2.0");
        assert_eq!(chosen("^1.3.0-rc.1", there), "1.3.0-rc.2");
        assert_eq!(chosen("=1.3.0-rc.1", there), "1.3.0-rc.1");
        assert_eq!(chosen("^1.3.0-rc.1", "1.2.0 1.3.0 1.3.0-rc.2"), "1.3.0");
    }

    #[test]
    fn what_is_asked_for_is_read_and_written() {
        for (text, written) in [
            ("orders", "orders@*"),
            ("orders@1.2", "orders@^1.2"),
            ("orders@>=1.2,<2", "orders@>=1.2, <2"),
            ("orders@=1.0.0+b7", "orders@=1.0.0+b7"),
        ] {
            let wanted: Wanted = text.parse().unwrap();
            assert_eq!(wanted.to_string(), written);
            assert_eq!(written.parse::<Wanted>().unwrap(), wanted);
        }
        for text in ["", "@1", "orders@", "orders@latest", "orders@1 2", "orders@v1", "or ders", "orders@1@2"] {
            assert_eq!(text.parse::<Wanted>().unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_there() {
        let refusal =
            |wanted: &str, there: &str| refuse_version(&wanted.parse().unwrap(), &versions(there)).to_string();
        assert_eq!(
            refusal("orders@^3", "2.0.1 1.2.0"),
            "resolve 'orders@^3': service 'orders' has no version that satisfies ^3: there are 1.2.0, 2.0.1"
        );
        assert!(refusal("orders@^3", "1.2.0").ends_with("there is 1.2.0"));
        assert!(refusal("orders", "1.2.0-rc.1").ends_with("ask for a pre-release by name: orders@1.2.0-rc.1"));
        let many: Vec<_> = (0..LISTED + 5).map(|minor| format!("1.{minor}.0")).collect();
        assert!(refusal("orders@2", &many.join(" ")).contains("there are 5 older ones and 1.5.0, 1.6.0, "));
    }

    #[test]
    fn an_unknown_service_is_told_of_those_with_a_name_like_it() {
        let known: Vec<Name> = ["orders", "orders-eu", "users", "web"].map(|name| name.parse().unwrap()).to_vec();
        let refusal = |wanted: &str| refuse_name(&wanted.parse().unwrap(), &known).to_string();
        assert_eq!(
            refusal("odrers"),
            "resolve 'odrers@*': no version of service 'odrers' is serving: did you mean 'orders'"
        );
        assert!(refusal("order").ends_with("did you mean 'orders' or 'orders-eu'"), "{}", refusal("order"));
        assert!(refusal("wbe").ends_with("did you mean 'web'"));
        assert!(refusal("payments").ends_with("is serving"));
    }

    #[test]
    fn compatible_is_what_a_caret_takes() {
        let compatible = |old: &str, new: &str| is_compatible(&old.parse().unwrap(), &new.parse().unwrap());
        assert!(compatible("1.2.3", "1.2.3") && compatible("1.2.3", "1.9.0") && compatible("1.2.3", "1.2.3+build"));
        assert!(!compatible("1.2.3", "2.0.0") && !compatible("1.2.3", "1.2.2") && !compatible("0.2.0", "0.3.0"));
        assert!(compatible("1.3.0-rc.1", "1.3.0") && !compatible("1.2.0", "2.0.0-rc.1"));
    }

    fn any_version() -> impl Strategy<Value = Version> {
        let pre = prop_oneof![4 => Just(""), 1 => Just("rc.1"), 1 => Just("rc.2")];
        let build = prop_oneof![3 => Just(""), 1 => Just("a"), 1 => Just("b")];
        (0..3u64, 0..3u64, 0..3u64, pre, build).prop_map(|(major, minor, patch, pre, build)| {
            let (pre, build) = (pre.parse().unwrap(), build.parse().unwrap());
            Version { major, minor, patch, pre, build }
        })
    }

    fn any_requirement() -> impl Strategy<Value = Requirement> {
        let operator = prop::sample::select(vec!["", "^", "~", "=", ">", ">=", "<", "<="]);
        let comparator = (operator, any_version(), 1..4usize).prop_map(|(operator, version, parts)| match parts {
            1 => format!("{operator}{}", version.major),
            2 => format!("{operator}{}.{}", version.major, version.minor),
            _ => format!("{operator}{version}"),
        });
        let text = prop_oneof![
            1 => Just("*".to_owned()),
            6 => prop::collection::vec(comparator, 1..3).prop_map(|comparators| comparators.join(", ")),
        ];
        text.prop_map(|text| text.parse().unwrap())
    }

    proptest! {
        #[test]
        fn nothing_newer_satisfies_and_all_equals_are_among_the_chosen(
            mut there in prop::collection::vec(any_version(), 0..12), requirement in any_requirement(),
        ) {
            there.sort();
            there.dedup();
            let chosen = newest(&there, |version| version, &requirement);
            let satisfying: Vec<_> = there.iter().filter(|version| requirement.is_satisfied_by(version)).collect();
            prop_assert_eq!(chosen.is_empty(), satisfying.is_empty());
            let best = satisfying.iter().max_by(|a, b| a.cmp_precedence(b));
            let expected: Vec<_> =
                satisfying.iter().filter(|version| version.cmp_precedence(best.unwrap()).is_eq()).copied().collect();
            prop_assert_eq!(chosen.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn a_requirement_is_read_back_as_it_is_written(requirement in any_requirement(), version in any_version()) {
            let again: Requirement = requirement.to_string().parse().unwrap();
            prop_assert_eq!(again.is_satisfied_by(&version), requirement.is_satisfied_by(&version));
        }

        #[test]
        fn whatever_is_typed_is_read_or_refused(text in "\\PC{0,40}") {
            if let Err(error) = text.parse::<Wanted>() {
                prop_assert_eq!(error.kind(), Kind::Invalid);
            }
        }

        #[test]
        fn compatible_versions_satisfy_the_carets_that_the_old_one_satisfied(old in any_version(), new in any_version()) {
            let caret: Requirement = format!("^{old}").parse().unwrap();
            prop_assert_eq!(is_compatible(&old, &new), caret.is_satisfied_by(&new));
        }
    }
}
