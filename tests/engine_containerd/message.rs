//! Those fields of the messages of `runtime.v1` that these tests use, under the numbers that the interface gives them.

use std::collections::HashMap;

use prost::Message;

/// `NamespaceMode`: the pod's.
pub const POD: i32 = 0;
/// `NamespaceMode`: the container's own.
pub const CONTAINER: i32 = 1;
/// `NamespaceMode`: the node's.
pub const NODE: i32 = 2;
/// `ContainerState`: its program runs.
pub const RUNNING: i32 = 1;
/// `ContainerState`: its program has ended.
pub const EXITED: i32 = 2;
/// `SecurityProfile.ProfileType`: containerd's own filter.
pub const RUNTIME_DEFAULT: i32 = 0;

/// `MountPropagation`: what the node mounts later is seen in the container.
pub const HOST_TO_CONTAINER: i32 = 1;

/// What has nothing to say.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// Every message that is just the id of a pod or a container.
#[derive(Clone, PartialEq, Message)]
pub struct Id {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `PodSandboxMetadata`
#[derive(Clone, PartialEq, Message)]
pub struct PodMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// `PodSandboxConfig`
#[derive(Clone, PartialEq, Message)]
pub struct Pod {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodMetadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(string, tag = "3")]
    pub log_directory: String,
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<PodLinux>,
}

/// `LinuxPodSandboxConfig`
#[derive(Clone, PartialEq, Message)]
pub struct PodLinux {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub security: Option<SandboxSecurity>,
    #[prost(map = "string, string", tag = "3")]
    pub sysctls: HashMap<String, String>,
}

/// `LinuxSandboxSecurityContext`
#[derive(Clone, PartialEq, Message)]
pub struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    pub namespaces: Option<NamespaceOption>,
    #[prost(bool, tag = "6")]
    pub privileged: bool,
}

/// `NamespaceOption`
#[derive(Clone, Copy, PartialEq, Message)]
pub struct NamespaceOption {
    #[prost(int32, tag = "1")]
    pub network: i32,
    #[prost(int32, tag = "2")]
    pub pid: i32,
    #[prost(int32, tag = "3")]
    pub ipc: i32,
}

/// `RunPodSandboxRequest`
#[derive(Clone, PartialEq, Message)]
pub struct RunPod {
    #[prost(message, optional, tag = "1")]
    pub config: Option<Pod>,
    #[prost(string, tag = "2")]
    pub handler: String,
}

/// `ListPodSandboxResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Pods {
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<Id>,
}

/// `ContainerMetadata`
#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
}

/// `ImageSpec`
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `ContainerConfig`
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<Image>,
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<Mount>,
    #[prost(string, tag = "11")]
    pub log_path: String,
    #[prost(bool, tag = "14")]
    pub tty: bool,
    #[prost(message, optional, tag = "15")]
    pub linux: Option<ContainerLinux>,
}

/// `Mount`
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    #[prost(bool, tag = "3")]
    pub readonly: bool,
    #[prost(int32, tag = "5")]
    pub propagation: i32,
}

/// `LinuxContainerConfig`
#[derive(Clone, PartialEq, Message)]
pub struct ContainerLinux {
    #[prost(message, optional, tag = "1")]
    pub resources: Option<Resources>,
    #[prost(message, optional, tag = "2")]
    pub security: Option<Security>,
}

/// `LinuxContainerResources`
#[derive(Clone, PartialEq, Message)]
pub struct Resources {
    #[prost(int64, tag = "1")]
    pub cpu_period: i64,
    #[prost(int64, tag = "2")]
    pub cpu_quota: i64,
    #[prost(int64, tag = "3")]
    pub cpu_shares: i64,
    #[prost(int64, tag = "4")]
    pub memory_limit: i64,
    #[prost(int64, tag = "5")]
    pub oom_score_adj: i64,
    #[prost(string, tag = "6")]
    pub cpuset_cpus: String,
}

/// `LinuxContainerSecurityContext`
#[derive(Clone, PartialEq, Message)]
pub struct Security {
    #[prost(message, optional, tag = "1")]
    pub capabilities: Option<Capability>,
    #[prost(bool, tag = "2")]
    pub privileged: bool,
    #[prost(message, optional, tag = "3")]
    pub namespaces: Option<NamespaceOption>,
    #[prost(message, optional, tag = "5")]
    pub run_as_user: Option<Number>,
    #[prost(bool, tag = "7")]
    pub readonly_rootfs: bool,
    #[prost(int64, repeated, tag = "8")]
    pub supplemental_groups: Vec<i64>,
    #[prost(bool, tag = "11")]
    pub no_new_privs: bool,
    #[prost(string, repeated, tag = "13")]
    pub masked_paths: Vec<String>,
    #[prost(string, repeated, tag = "14")]
    pub readonly_paths: Vec<String>,
    #[prost(message, optional, tag = "15")]
    pub seccomp: Option<Profile>,
}

/// `Capability`
#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    #[prost(string, repeated, tag = "1")]
    pub add: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub drop: Vec<String>,
}

/// `Int64Value`
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Number {
    #[prost(int64, tag = "1")]
    pub value: i64,
}

/// `SecurityProfile`
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

/// `CreateContainerRequest`
#[derive(Clone, PartialEq, Message)]
pub struct CreateContainer {
    #[prost(string, tag = "1")]
    pub pod: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<Container>,
    #[prost(message, optional, tag = "3")]
    pub sandbox: Option<Pod>,
}

/// `StopContainerRequest`
#[derive(Clone, PartialEq, Message)]
pub struct StopContainer {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(int64, tag = "2")]
    pub timeout: i64,
}

/// `ContainerStatusResponse`
#[derive(Clone, PartialEq, Message)]
pub struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    pub status: Option<ContainerStatus>,
}

/// `ContainerStatus`
#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatus {
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(int32, tag = "7")]
    pub exit_code: i32,
    #[prost(string, tag = "10")]
    pub reason: String,
    #[prost(string, tag = "11")]
    pub message: String,
}

/// `ExecSyncRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, repeated, tag = "2")]
    pub command: Vec<String>,
    #[prost(int64, tag = "3")]
    pub timeout: i64,
}

/// `ExecSyncResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ExecAnswer {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

/// `ContainerStatsResponse`
#[derive(Clone, PartialEq, Message)]
pub struct StatsAnswer {
    #[prost(message, optional, tag = "1")]
    pub stats: Option<ContainerStats>,
}

/// `ContainerStats`
#[derive(Clone, PartialEq, Message)]
pub struct ContainerStats {
    #[prost(message, optional, tag = "2")]
    pub cpu: Option<Usage>,
    #[prost(message, optional, tag = "3")]
    pub memory: Option<Usage>,
}

/// `CpuUsage` and `MemoryUsage`: the first value of either is its nanoseconds, or the bytes of its working set.
#[derive(Clone, PartialEq, Message)]
pub struct Usage {
    #[prost(message, optional, tag = "2")]
    pub used: Option<Number>,
}

/// `UpdateContainerResourcesRequest`
#[derive(Clone, PartialEq, Message)]
pub struct UpdateResources {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub linux: Option<Resources>,
}
