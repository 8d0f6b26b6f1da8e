//! How the ids of a container are those on disk.

use oci_spec::runtime::{LinuxIdMapping, Spec};

use crate::sys::user_namespace::own_maps;

/// How the ids of a container in a user namespace, its own or ours, are those on disk.
pub(super) fn id_map(spec: Option<&Spec>) -> Option<String> {
    let maps = [own_maps(), spec.and_then(container_map)];
    let maps: Vec<String> = maps.into_iter().flatten().collect();
    (!maps.is_empty()).then(|| maps.join(" "))
}

fn container_map(spec: &Spec) -> Option<String> {
    let linux = spec.linux().as_ref()?;
    let list = |maps: &Option<Vec<LinuxIdMapping>>| {
        let maps = maps.iter().flatten();
        maps.map(|map| format!("{}:{}:{}", map.container_id(), map.host_id(), map.size())).collect::<Vec<_>>().join(",")
    };
    let (users, groups) = (list(linux.uid_mappings()), list(linux.gid_mappings()));
    (!users.is_empty() || !groups.is_empty()).then(|| format!("{users}/{groups}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(linux: &serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({"ociVersion": "1.2.0", "linux": linux})).unwrap()
    }

    #[test]
    fn an_id_map_is_told_apart_by_every_number() {
        let map = |host: u32| serde_json::json!([{"containerID": 0, "hostID": host, "size": 65536}]);
        assert_eq!(id_map(Some(&spec(&serde_json::json!({})))), None);
        let both = serde_json::json!({"uidMappings": map(100_000), "gidMappings": map(200_000)});
        assert_eq!(id_map(Some(&spec(&both))).as_deref(), Some("0:100000:65536/0:200000:65536"));
    }
}
