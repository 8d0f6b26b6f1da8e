//! Which container of which pod asks, as its engine says. Pure.

use std::collections::HashMap;

use crate::error::{Error, Kind, Result};
use crate::ids::Name;

/// What an engine of Kubernetes says about the containers of a pod: kind, the container's name, the pod's namespace.
pub(super) const CONTAINERD: [&str; 3] =
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri.container-name", "io.kubernetes.cri.sandbox-namespace"];
pub(super) const CRIO: [&str; 3] =
    ["io.kubernetes.cri-o.ContainerType", "io.kubernetes.container.name", "io.kubernetes.pod.namespace"];

/// A container's place in a pod, as the engine has it.
pub(super) struct Member<'a> {
    kind: &'a str,
    /// What the pod calls it.
    pub(super) container: Option<&'a str>,
    namespace: &'a str,
}

impl<'a> Member<'a> {
    /// `None` if the container is in no pod of Kubernetes. podman's pods have a kind as CRI-O's have, but no namespace.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if two engines say that the pod is theirs. CRI-O hands on what the pod's author says in
    /// containerd's name, and containerd may have been told to do likewise: then it is not known who owns the ring.
    pub(super) fn read(annotations: &'a HashMap<String, String>) -> Result<Option<Self>> {
        let get = |key: &str| annotations.get(key).map(String::as_str);
        let of = |[kind, container, namespace]: [&str; 3]| {
            Some(Self { kind: get(kind)?, container: get(container), namespace: get(namespace)? })
        };
        match (of(CONTAINERD), of(CRIO)) {
            (Some(_), Some(_)) => {
                let cause = format!("annotations {} and {} contradict each other", CONTAINERD[0], CRIO[0]);
                Err(Error::new(Kind::Invalid, "find out whose pod it is", cause)
                    .next("take those out of the pod that its engine did not set"))
            }
            (member, None) | (None, member) => Ok(member),
        }
    }

    /// The container that only holds the pod's namespaces has nothing to save.
    pub(super) fn is_sandbox(&self) -> bool {
        self.kind == "sandbox"
    }

    /// Who owns what it names.
    pub(super) fn owner(&self) -> Result<Name> {
        format!("k8s.{}", self.namespace).parse().map_err(|error: Error| {
            error.during(format!("read whose pod it is, of namespace '{}'", self.namespace.escape_debug()))
        })
    }
}
