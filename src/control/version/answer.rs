//! Answers of the daemon to those who look for a version. Nothing is held while an answer is sent: who is slow to read
//! is slow alone.

use std::sync::Arc;
use std::time::Duration;

use super::{Connected, Member, Question, method, watch};
use crate::control::{Access, Answer, Call, Fault, Origin, Peer};
use crate::error::{Error, Kind};
use crate::metrics::{self, Resolved};
use crate::ops::cluster::{Cluster, Found};
use crate::service::address::Listen;
use crate::service::choice::Wanted;
use crate::service::connect::{self, Rights, TIMEOUT, Way};
use crate::service::roster::{self, Roster};

/// The longest time that a caller may let the daemon connect for.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// What a caller has to be allowed; `None` for what is no method of these.
#[must_use]
pub fn access(name: &str) -> Option<Access> {
    find(name).map(|_| Access::Read)
}

/// Answers a call.
///
/// # Errors
/// What the caller is told.
pub fn call((roster, cluster): (&Arc<Roster>, Option<&Cluster>), call: &Call<'_>) -> Result<Answer, Fault> {
    match find(call.method()) {
        Some(method::RESOLVE) => resolve((roster, cluster), call),
        Some(method::CONNECT) => connect((roster, cluster), call),
        Some(method::WATCH) => watch::watch((roster, cluster), call),
        _ => Err(Fault::MethodNotFound(call.method().to_owned())),
    }
}

/// The method with this last name.
fn find(name: &str) -> Option<&'static str> {
    let called_so = |method: &&str| method.rsplit('.').next() == Some(name);
    [method::RESOLVE, method::CONNECT, method::WATCH].into_iter().find(called_so)
}

fn resolve((roster, cluster): (&Roster, Option<&Cluster>), call: &Call<'_>) -> Result<Answer, Fault> {
    let (wanted, question) = wanted(call)?;
    let found = match cluster {
        Some(cluster) => cluster.resolve(&wanted),
        None => roster.resolve(&wanted).map(Found::Here),
    };
    metrics::resolved(if found.is_ok() { Resolved::Found } else { Resolved::Unmatched });
    let found = found?;
    let listen = member_of(&found).find(question.listen.as_ref())?;
    Answer::new(&shown_as_found(&found, listen))
}

fn member_of(found: &Found) -> &Arc<roster::Member> {
    match found {
        Found::Here(member) | Found::There { member, .. } => member,
    }
}

fn shown_as_found(found: &Found, listen: &Listen) -> Member {
    let plain = Member::of(member_of(found), listen);
    match found {
        Found::Here(_) => plain,
        Found::There { node, stale, .. } => {
            let stale_ms = stale.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            Member { node: Some(node.clone()), stale_ms, ..plain }
        }
    }
}

/// With a socket that is made with no more rights than the caller has.
fn connect((roster, cluster): (&Arc<Roster>, Option<&Cluster>), call: &Call<'_>) -> Result<Answer, Fault> {
    let (wanted, question) = wanted(call)?;
    let Peer { origin, access } = call.peer();
    let rights = match (origin, access) {
        // It is refused the socket in the end, as every open file.
        (Origin::Node(_), _) | (Origin::User { .. }, Access::All) => Rights::Own,
        (Origin::User { uid, groups, .. }, Access::Read | Access::Nothing) => Rights::Of { uid: *uid, groups },
    };
    let timeout = question.timeout_ms.map_or(TIMEOUT, Duration::from_millis).min(TIMEOUT_MAX);
    let way = Way { listen: question.listen.as_ref(), rights, timeout };
    let reached = reach(roster, cluster, &wanted, &way);
    metrics::resolved(match &reached {
        Ok(_) => Resolved::Found,
        Err(error) if error.kind() == Kind::NotFound => Resolved::Unmatched,
        Err(_) => Resolved::Unreachable,
    });
    let (connected, member) = reached?;
    Ok(Answer::new(&Connected { member, fd_index: 0 })?.with_descriptor(connected.socket))
}

/// Chooses an instance of all nodes and connects to it.
fn reach(
    roster: &Arc<Roster>,
    cluster: Option<&Cluster>,
    wanted: &Wanted,
    way: &Way<'_>,
) -> Result<(connect::Connected, Member), Error> {
    match cluster.map(|cluster| cluster.resolve(wanted)).transpose()? {
        Some(found @ Found::There { .. }) => {
            let connected = connect::connect_to(Arc::clone(member_of(&found)), wanted, way)?;
            let member = shown_as_found(&found, &connected.listen);
            Ok((connected, member))
        }
        // Which one of this node's, is chosen anew while they come and go.
        Some(Found::Here(_)) | None => {
            let connected = connect::connect(roster, wanted, way)?;
            let member = Member::of(&connected.member, &connected.listen);
            Ok((connected, member))
        }
    }
}

fn wanted(call: &Call<'_>) -> Result<(Wanted, Question), Fault> {
    let question: Question = call.parameters()?;
    let Some(name) = question.name.clone() else {
        let message = "which service is wanted is not said".to_owned();
        return Err(Fault::InvalidParameter { parameter: "name".to_owned(), message });
    };
    let requirement = question.requirement.clone().unwrap_or_default();
    Ok((Wanted { name, requirement }, question))
}
