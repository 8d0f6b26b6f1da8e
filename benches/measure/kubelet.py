"""containerd of the benchmark's own, and what kubelet says to it: pods and containers over its CRI socket."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time

import grpc

PAUSE = "bench.local/pause:1"
SERVICE = "/runtime.v1.RuntimeService"
# NamespaceMode: the node's network needs no plugin, the rest is as in most pods.
POD, CONTAINER, NODE = 0, 1, 2


class Kubelet:
    """A containerd with these runtimes (name to program), as long as the value is in use."""

    def __init__(self, rig, runtimes):
        self.rig = rig
        self.socket = rig.top / "c.sock"
        self.count = 0
        self.sandboxes = []
        settings = rig.top / "containerd.toml"
        settings.write_text(_settings(rig.top, runtimes))
        log = (rig.top / "containerd.log").open("w")
        self.daemon = subprocess.Popen(["containerd", "--config", settings], stdout=log, stderr=log)
        archive = rig.top / "image.tar"
        _write_image(archive)
        ctr = ["ctr", "--address", self.socket, "--namespace", "k8s.io"]
        while subprocess.run([*ctr, "plugins", "ls"], check=False, capture_output=True).returncode:
            if self.daemon.poll() is not None:
                raise SystemExit("containerd does not start")
            time.sleep(0.05)
        subprocess.run([*ctr, "images", "import", archive], check=True, stdout=subprocess.DEVNULL)
        self.channel = grpc.insecure_channel(f"unix:{self.socket}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sandbox in list(self.sandboxes):
            with contextlib.suppress(grpc.RpcError):
                self.remove(sandbox)
        self.channel.close()
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait()
        for hierarchy in os.scandir("/sys/fs/cgroup"):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(hierarchy.path, self.parent))

    @property
    def parent(self):
        return f"regen-bench-{os.getpid()}"

    def pod(self, runtime, annotations=None):
        """The configuration of a pod that nobody has made yet, and the runtime that is to make it."""
        self.count += 1
        name = f"pod-{self.count}".encode()
        metadata = _text(1, name) + _text(2, name) + _text(3, b"bench")
        security = _text(1, _number(1, NODE) + _number(2, CONTAINER) + _number(3, POD))
        linux = _text(1, f"/{self.parent}".encode()) + _text(2, security)
        pairs = (annotations or {}).items()
        notes = b"".join(_text(7, _text(1, key.encode()) + _text(2, value.encode())) for key, value in pairs)
        return _text(1, metadata) + _text(3, b"/tmp") + notes + _text(8, linux), runtime.encode()

    def run_pod(self, pod):
        config, runtime = pod
        sandbox = self._call("RunPodSandbox", _text(1, config) + _text(2, runtime))
        self.sandboxes.append(sandbox)
        return sandbox

    def run_container(self, sandbox, pod, command):
        """Creates and starts a container; gives its id."""
        security = _text(3, _number(1, NODE) + _number(2, CONTAINER) + _number(3, POD))
        words = b"".join(_text(3, word.encode()) for word in command)
        config = _text(1, _text(1, b"app")) + _text(2, _text(1, PAUSE.encode())) + words + _text(15, _text(2, security))
        container = self._call("CreateContainer", _text(1, sandbox) + _text(2, config) + _text(3, pod[0]))
        self._call("StartContainer", _text(1, container))
        return container

    def remove(self, sandbox):
        """Ends a pod with all that is in it."""
        self._call("StopPodSandbox", _text(1, sandbox))
        self._call("RemovePodSandbox", _text(1, sandbox))
        self.sandboxes.remove(sandbox)

    def _call(self, method, request):
        """All answers that matter here are a message of one text, an id."""
        answer = self.channel.unary_unary(f"{SERVICE}/{method}")(request, timeout=60)
        return answer[2:]


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _text(field, value):
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _settings(top, runtimes):
    plugin = 'plugins."io.containerd.grpc.v1.cri"'
    text = f"""version = 2
root = "{top}/c"
state = "{top}/cs"
[grpc]
address = "{top}/c.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{top}/opt"
[{plugin}]
sandbox_image = "{PAUSE}"
disable_apparmor = true
restrict_oom_score_adj = true
[{plugin}.containerd]
default_runtime_name = "{next(iter(runtimes))}"
"""
    for name, program in runtimes.items():
        table = f"{plugin}.containerd.runtimes.{name}"
        text += f'[{table}]\nruntime_type = "io.containerd.runc.v2"\npod_annotations = ["run.regen.*"]\n'
        text += f'[{table}.options]\nBinaryName = "{program}"\nRoot = "{top}/state-{name}"\n'
    return text


def _write_image(path):
    """An OCI archive of busybox, which sleeps if nobody says anything else."""
    blobs = {}

    def put(content, kind):
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(shutil.which("busybox"), "bin/busybox")
        for link in ("sleep", "sh", "true"):
            entry = tarfile.TarInfo(f"bin/{link}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    layer = put(layer.getvalue(), "layer.v1.tar")
    config = {
        "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "infinity"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    config = put(json.dumps(config).encode(), "config.v1+json")
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()
    manifest = put(manifest, "manifest.v1+json") | {"annotations": {"org.opencontainers.image.ref.name": PAUSE}}
    blobs["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in blobs.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
