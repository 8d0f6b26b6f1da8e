//! A client of Kubernetes' Container Runtime Interface: what kubelet says to containerd.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::daemon::BOX;
use crate::message::*;

/// No call takes longer on a slow machine.
const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "/runtime.v1.RuntimeService";

/// A connection to the CRI plugin.
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    parent: String,
    logs: PathBuf,
}

impl Cri {
    /// Connects. Pods are made below this cgroup, and log into this directory.
    pub fn new(socket: &Path, parent: &str, logs: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap().timeout(LIMIT);
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Self { runtime, channel, parent: format!("/{parent}"), logs: logs.to_owned() }
    }

    fn call<Q, R>(&self, method: &str, request: Q) -> Result<R, Status>
    where
        Q: Message + Default + 'static,
        R: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("{SERVICE}/{method}")).unwrap();
        self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<Q, R>::default();
            grpc.unary(Request::new(request), path, codec).await.map(tonic::Response::into_inner)
        })
    }

    /// Whether containerd has looked through what an earlier one left, and answers.
    pub fn serves(&self) -> bool {
        self.call::<_, Pods>("ListPodSandbox", Empty {}).is_ok()
    }

    /// A pod of this Kubernetes namespace on the node's network, as a configuration to be changed.
    pub fn pod(&self, namespace: &str, name: &str) -> Pod {
        let options = NamespaceOption { network: NODE, pid: CONTAINER, ipc: 0 };
        let security = SandboxSecurity { namespaces: Some(options), privileged: false };
        Pod {
            metadata: Some(PodMetadata {
                name: name.into(),
                uid: format!("uid-of-{name}"),
                namespace: namespace.into(),
                attempt: 0,
            }),
            hostname: String::new(),
            log_directory: self.logs.join(name).to_str().unwrap().into(),
            annotations: HashMap::new(),
            linux: Some(PodLinux {
                cgroup_parent: self.parent.clone(),
                security: Some(security),
                sysctls: HashMap::new(),
            }),
        }
    }

    /// Starts a pod under the runtime handler `regen`.
    pub fn run_pod(&self, pod: &Pod) -> Result<String, Status> {
        let request = RunPod { config: Some(pod.clone()), handler: "regen".into() };
        self.call::<_, Id>("RunPodSandbox", request).map(|answer| answer.id)
    }

    /// Ends a pod and forgets it.
    pub fn remove_pod(&self, id: &str) {
        self.call::<_, Empty>("StopPodSandbox", Id { id: id.into() }).unwrap();
        self.call::<_, Empty>("RemovePodSandbox", Id { id: id.into() }).unwrap();
    }

    /// Ends all pods, as well as it can be done.
    pub fn remove_all(&self) {
        let pods = self.call::<_, Pods>("ListPodSandbox", Empty {}).map(|pods| pods.items);
        for pod in pods.unwrap_or_default() {
            let _ = self.call::<_, Empty>("StopPodSandbox", Id { id: pod.id.clone() });
            let _ = self.call::<_, Empty>("RemovePodSandbox", Id { id: pod.id });
        }
    }

    /// Makes a container in a pod.
    pub fn create(&self, pod_id: &str, pod: &Pod, container: Container) -> Result<String, Status> {
        let request = CreateContainer { pod: pod_id.into(), config: Some(container), sandbox: Some(pod.clone()) };
        self.call::<_, Id>("CreateContainer", request).map(|answer| answer.id)
    }

    /// Lets a container's program go.
    pub fn start(&self, id: &str) -> Result<(), Status> {
        self.call::<_, Empty>("StartContainer", Id { id: id.into() }).map(drop)
    }

    /// Makes a container in a pod and lets it go.
    #[track_caller]
    pub fn run(&self, pod_id: &str, pod: &Pod, container: Container) -> String {
        let id = self.create(pod_id, pod, container).unwrap();
        self.start(&id).unwrap();
        id
    }

    /// Ends a container; kills it after so many seconds.
    #[track_caller]
    pub fn stop(&self, id: &str, seconds: i64) {
        self.call::<_, Empty>("StopContainer", StopContainer { id: id.into(), timeout: seconds }).unwrap();
    }

    /// Forgets a container.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.call::<_, Empty>("RemoveContainer", Id { id: id.into() }).unwrap();
    }

    /// How it goes with a container.
    #[track_caller]
    pub fn status(&self, id: &str) -> ContainerStatus {
        let request = Id { id: id.into() };
        self.call::<_, StatusAnswer>("ContainerStatus", request).unwrap().status.unwrap()
    }

    /// Waits for a container's end.
    #[track_caller]
    pub fn wait(&self, id: &str) -> ContainerStatus {
        crate::harness::eventually("the container ended", || self.status(id).state == EXITED);
        self.status(id)
    }

    /// Runs a command in a container to its end.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<ExecAnswer, Status> {
        self.exec_within(id, command, 30)
    }

    /// The same, for at most so many seconds.
    pub fn exec_within(&self, id: &str, command: &[&str], seconds: i64) -> Result<ExecAnswer, Status> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        self.call("ExecSync", Exec { id: id.into(), command, timeout: seconds })
    }

    /// What a script prints in a container.
    #[track_caller]
    pub fn shell(&self, id: &str, script: &str) -> String {
        let answer = self.exec(id, &["sh", "-c", script]).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(answer.exit_code, 0, "{script}: {} {}", text(&answer.stdout), text(&answer.stderr));
        text(&answer.stdout)
    }

    /// What a container uses.
    #[track_caller]
    pub fn stats(&self, id: &str) -> ContainerStats {
        self.call::<_, StatsAnswer>("ContainerStats", Id { id: id.into() }).unwrap().stats.unwrap()
    }

    /// Changes what a container may use.
    pub fn update(&self, id: &str, resources: Resources) -> Result<(), Status> {
        let request = UpdateResources { id: id.into(), linux: Some(resources) };
        self.call::<_, Empty>("UpdateContainerResources", request).map(drop)
    }

    /// The log of a container that is called so, in a pod of this name, as containerd writes it.
    pub fn log(&self, pod: &str, container: &str) -> String {
        let path = self.logs.join(pod).join(format!("{container}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

impl Pod {
    /// With an annotation.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// With a kernel parameter of its own.
    pub fn tune(mut self, key: &str, value: &str) -> Self {
        self.linux.as_mut().unwrap().sysctls.insert(key.into(), value.into());
        self
    }

    /// That may have privileged containers.
    pub fn privilege(mut self) -> Self {
        self.linux.as_mut().and_then(|linux| linux.security.as_mut()).unwrap().privileged = true;
        self
    }

    /// With namespaces like these.
    pub fn share(mut self, network: i32, pid: i32) -> Self {
        let security = self.linux.as_mut().and_then(|linux| linux.security.as_mut()).unwrap();
        security.namespaces = Some(NamespaceOption { network, pid, ipc: POD });
        self
    }
}

/// A container of busybox that runs a script, with the namespaces that a pod's containers usually have.
pub fn shell(name: &str, script: &str) -> Container {
    let options = NamespaceOption { network: NODE, pid: CONTAINER, ipc: POD };
    let security = Security { namespaces: Some(options), ..Security::default() };
    Container {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(Image { name: BOX.into() }),
        command: ["sh", "-c", script].map(str::to_owned).into(),
        log_path: format!("{name}.log"),
        linux: Some(ContainerLinux { resources: None, security: Some(security) }),
        ..Container::default()
    }
}

impl Container {
    /// With another security context.
    pub fn secure(mut self, change: impl FnOnce(&mut Security)) -> Self {
        change(self.linux.as_mut().and_then(|linux| linux.security.as_mut()).unwrap());
        self
    }

    /// With a directory or file of the node.
    pub fn mount(mut self, host: &Path, container: &str, change: impl FnOnce(&mut Mount)) -> Self {
        let mut mount = Mount {
            container_path: container.into(),
            host_path: host.to_str().unwrap().into(),
            readonly: false,
            propagation: 0,
        };
        change(&mut mount);
        self.mounts.push(mount);
        self
    }

    /// From another image.
    pub fn from(mut self, image: &str) -> Self {
        self.image = Some(Image { name: image.into() });
        self
    }

    /// The one that kubelet makes after so many of the same name have ended.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.metadata.as_mut().unwrap().attempt = attempt;
        self
    }

    /// With limits.
    pub fn limit(mut self, resources: Resources) -> Self {
        self.linux.as_mut().unwrap().resources = Some(resources);
        self
    }
}
