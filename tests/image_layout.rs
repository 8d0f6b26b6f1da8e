//! Images made by the tools that people use, read by regen; and layouts written by regen, read by those tools.

// A test's helpers fail by panicking, as the tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use regen::error::Kind;
use regen::ids::Digest;
use regen::image::layout::digest_of;
use regen::image::manifest::{INDEX_TYPE, MANIFEST_TYPE};
use regen::image::write::{NewLayer, config_for, index_entry, layer_descriptor, manifest_for};
use regen::image::{Descriptor, Image, ImageSource, Index, LayerType, Layout, open_image};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs a tool and gives its standard output.
fn tool(program: &str, args: &[&str]) -> String {
    let mut command = Command::new("timeout");
    let output = command.args(["60", program]).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn skopeo_copy(options: &[&str], from: &str, to: &str) {
    tool("skopeo", &[&["--insecure-policy", "copy", "--quiet"], options, &[from, to]].concat());
}

/// A directory with an image of two layers in an OCI layout `image`, tag `v1`, made by umoci.
struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        let (layout, image) = (fixture.text("image"), fixture.text("image:v1"));
        fs::write(fixture.path("motd"), "hello\n").unwrap();
        tool("umoci", &["init", "--layout", &layout]);
        tool("umoci", &["new", "--image", &image]);
        tool("umoci", &["insert", "--image", &image, "/bin/busybox", "/bin/busybox"]);
        tool("umoci", &["insert", "--image", &image, &fixture.text("motd"), "/etc/motd"]);
        let config = ["--config.entrypoint=/bin/busybox", "--config.cmd=cat", "--config.cmd=/etc/motd"];
        let more = ["--config.env=GREETING=hi", "--config.workingdir=/etc", "--config.user=7:8"];
        tool("umoci", &[&["config", "--image", &image], &config[..], &more[..]].concat());
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn open(&self, reference: &str) -> regen::error::Result<Image> {
        let (transport, path) = reference.split_once(':').unwrap();
        let source: ImageSource = format!("{transport}:{}", self.text(path)).parse().unwrap();
        let scratch = self.path("scratch");
        fs::create_dir_all(&scratch).unwrap();
        let image = open_image(&source, &scratch);
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "something was left in the scratch directory");
        image
    }

    /// The one line that opening this image ends with.
    fn refusal(&self, reference: &str) -> (Kind, String) {
        let error = self.open(reference).unwrap_err();
        let line = error.to_string();
        assert!(!line.contains('\n') && line.starts_with("open image"), "{line}");
        (error.kind(), line)
    }

    fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("image/index.json")).unwrap()).unwrap()
    }

    fn write_index(&self, index: &Value) {
        fs::write(self.path("image/index.json"), index.to_string()).unwrap();
    }

    /// Stores a changed manifest, lets `v1` point to it, and gives its digest.
    fn change_manifest(&self, change: impl FnOnce(&mut Value)) -> Digest {
        let layout = Layout::open(self.path("image")).unwrap();
        let entry = layout.index().unwrap().tagged("v1").unwrap().clone();
        let bytes = layout.read_blob(&entry.digest().unwrap(), 1 << 20).unwrap();
        let mut manifest = serde_json::from_slice(&bytes).unwrap();
        change(&mut manifest);
        let (digest, size) = layout.put_blob(manifest.to_string().as_bytes()).unwrap();
        let mut index = layout.index().unwrap();
        index.set(index_entry(&(digest.clone(), size), "v1").unwrap());
        layout.replace_index(&index).unwrap();
        digest
    }
}

fn read_all(mut file: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Each layer's blob has its digest, and what it decompresses to has its diff id.
fn check_layers(image: &Image, kind: LayerType) {
    assert_eq!(image.layers.len(), 2);
    for layer in &image.layers {
        assert_eq!(layer.media_type, kind);
        let bytes = read_all(image.open_layer(layer).unwrap());
        assert_eq!(digest_of(&bytes), layer.digest);
        let tar = match kind {
            LayerType::Tar => bytes,
            LayerType::Gzip => read_all(flate2::read::MultiGzDecoder::new(&bytes[..])),
            LayerType::Zstd => zstd::decode_all(&bytes[..]).unwrap(),
        };
        assert_eq!(digest_of(&tar), layer.diff_id);
    }
}

#[test]
fn a_layout_made_by_umoci_is_read_whole() {
    let fixture = Fixture::new();
    let image = fixture.open("oci:image:v1").unwrap();
    let run = &image.config.config;
    assert_eq!(run.entrypoint, ["/bin/busybox"]);
    assert_eq!(run.cmd, ["cat", "/etc/motd"]);
    assert_eq!((run.user.as_str(), run.working_dir.as_str()), ("7:8", "/etc"));
    assert!(run.env.contains(&"GREETING=hi".to_owned()));
    check_layers(&image, LayerType::Gzip);
    let seen: Value =
        serde_json::from_str(&tool("skopeo", &["inspect", &format!("oci:{}", fixture.text("image:v1"))])).unwrap();
    assert_eq!(seen["Digest"], image.manifest_digest.to_string());
    let digests: Vec<_> = image.layers.iter().map(|layer| layer.digest.to_string()).collect();
    assert_eq!(seen["Layers"], json!(digests));
    assert_eq!(fixture.open("oci:image").unwrap().manifest_digest, image.manifest_digest);
}

#[test]
fn an_archive_holds_the_same_image_as_the_layout_it_was_made_from() {
    let fixture = Fixture::new();
    let image = fixture.open("oci:image:v1").unwrap();
    let from = format!("oci:{}", fixture.text("image:v1"));
    skopeo_copy(&[], &from, &format!("oci-archive:{}", fixture.text("skopeo.tar:v1")));
    for format in ["gnu", "pax", "ustar"] {
        let (file, directory) = (fixture.text(&format!("{format}.tar")), fixture.text("image"));
        tool("tar", &["-C", &directory, &format!("--format={format}"), "-cf", &file, "."]);
    }
    for reference in
        ["oci-archive:skopeo.tar", "oci-archive:gnu.tar:v1", "oci-archive:pax.tar", "oci-archive:ustar.tar:v1"]
    {
        let archived = fixture.open(reference).unwrap();
        assert_eq!(archived.manifest_digest, image.manifest_digest, "{reference}");
        check_layers(&archived, LayerType::Gzip);
        assert_eq!(fs::read_dir(fixture.path("scratch")).unwrap().count(), 0);
    }
}

#[test]
fn zstd_and_plain_layers_are_told_apart() {
    let fixture = Fixture::new();
    let from = format!("oci:{}", fixture.text("image:v1"));
    skopeo_copy(&["--dest-compress", "--dest-compress-format", "zstd"], &from, &format!("dir:{}", fixture.text("dir")));
    skopeo_copy(&[], &format!("dir:{}", fixture.text("dir")), &format!("oci:{}", fixture.text("zstd:v1")));
    check_layers(&fixture.open("oci:zstd:v1").unwrap(), LayerType::Zstd);
    skopeo_copy(&["--dest-decompress"], &from, &format!("dir:{}", fixture.text("plain-dir")));
    skopeo_copy(
        &["--dest-oci-accept-uncompressed-layers"],
        &format!("dir:{}", fixture.text("plain-dir")),
        &format!("oci:{}", fixture.text("plain:v1")),
    );
    check_layers(&fixture.open("oci:plain:v1").unwrap(), LayerType::Tar);
}

#[test]
fn dockers_media_types_are_read_too() {
    let fixture = Fixture::new();
    fixture.change_manifest(|manifest| {
        manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
        manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
        }
    });
    let mut index = fixture.index();
    index["manifests"][0]["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
    fixture.write_index(&index);
    check_layers(&fixture.open("oci:image:v1").unwrap(), LayerType::Gzip);
}

/// Writes an image of one layer with regen's own builders into a new layout.
fn write_image(directory: &Path, tag: &str, text: &str) -> (Layout, Digest) {
    let layout = Layout::create(directory).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "note", text.as_bytes()).unwrap();
    let tar = tar.into_inner().unwrap();
    let blob = zstd::encode_all(&tar[..], 1).unwrap();
    let mut stage = layout.stage_blob().unwrap();
    std::io::Write::write_all(stage.file(), &blob).unwrap();
    stage.commit(&digest_of(&blob)).unwrap();

    let created = "2026-11-22T15:24:48.123Z";
    let layer = NewLayer { diff_id: digest_of(&tar), created: created.into(), comment: "exit".into() };
    let config = config_for(None, &[layer], created);
    let config = layout.put_blob(&config.to_json().unwrap()).unwrap();
    let layers = vec![layer_descriptor(LayerType::Zstd, &digest_of(&blob), blob.len() as u64)];
    let annotations = BTreeMap::from([("run.regen.seq".to_owned(), "42".to_owned())]);
    let manifest = manifest_for(&config, layers, annotations);
    let manifest = layout.put_blob(&manifest.to_json().unwrap()).unwrap();
    let mut index = layout.index().unwrap();
    index.set(index_entry(&manifest, tag).unwrap());
    layout.replace_index(&index).unwrap();
    (layout, manifest.0)
}

#[test]
fn other_tools_accept_what_regen_writes_and_keep_its_annotations() {
    let fixture = Fixture { directory: tempfile::tempdir().unwrap() };
    let tag = "20261122T152448Z-000042";
    let (_, digest) = write_image(&fixture.path("ring"), tag, "first");
    let ours = format!("oci:{}:{tag}", fixture.text("ring"));
    let seen: Value = serde_json::from_str(&tool("skopeo", &["inspect", &ours])).unwrap();
    assert_eq!(seen["Digest"], digest.to_string());
    assert_eq!(seen["Created"], "2026-11-22T15:24:48.123Z");
    assert_eq!(seen["Os"], "linux");
    let config: Value = serde_json::from_str(&tool("skopeo", &["inspect", "--config", &ours])).unwrap();
    assert_eq!(config["history"][0]["created_by"], "regen");
    let listed: Value = serde_json::from_str(&tool("umoci", &["stat", "--json", "--image", &ours[4..]])).unwrap();
    assert_eq!(listed["history"].as_array().unwrap().len(), 1);

    skopeo_copy(&[], &ours, &format!("oci-archive:{}", fixture.text("copy.tar:x")));
    skopeo_copy(
        &[],
        &format!("oci-archive:{}", fixture.text("copy.tar:x")),
        &format!("oci:{}", fixture.text("back:y")),
    );
    for reference in [&format!("oci:ring:{tag}"), "oci-archive:copy.tar:x", "oci:back"] {
        let image = fixture.open(reference).unwrap();
        assert_eq!(image.manifest_digest, digest, "{reference}");
        assert_eq!(image.manifest.annotations["run.regen.seq"], "42");
        assert_eq!(digest_of(&read_all(image.open_layer(&image.layers[0]).unwrap())), image.layers[0].digest);
    }
}

#[test]
fn what_others_wrote_into_the_index_stays() {
    let fixture = Fixture::new();
    let mut index = fixture.index();
    index["annotations"] = json!({"maker": "somebody"});
    index["x-unknown"] = json!([1, {"a": null}]);
    index["manifests"][0]["x-field"] = json!({"deep": [true]});
    let foreign =
        json!({"mediaType": "application/x", "digest": "sha512:00ff", "size": 3, "data": "YWJj", "artifactType": "t"});
    index["manifests"].as_array_mut().unwrap().push(foreign.clone());
    fixture.write_index(&index);

    let (layout, _) = write_image(&fixture.path("image"), "mine", "x");
    let mut rewritten = fixture.index();
    let last = rewritten["manifests"].as_array_mut().unwrap().pop().unwrap();
    assert_eq!(last["annotations"]["org.opencontainers.image.ref.name"], "mine");
    assert_eq!(rewritten, index);
    // The same tag again takes the place of the old entry, and goes without a trace.
    write_image(&fixture.path("image"), "mine", "y");
    let mut ours = layout.index().unwrap();
    assert_eq!(ours.manifests.len(), 3);
    assert!(ours.remove("mine"));
    layout.replace_index(&ours).unwrap();
    assert_eq!(fixture.index(), index);
    assert!(fixture.open("oci:image:v1").is_ok());
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let fixture = Fixture::new();
    let image = fixture.open("oci:image:v1").unwrap();
    let layout = Layout::open(fixture.path("image")).unwrap();
    let entry = layout.index().unwrap().tagged("v1").unwrap().clone();
    let machine = regen::image::platform::machine();
    let platform = |architecture: &str| json!({"architecture": architecture, "os": "linux"});
    let on = |architecture: &str, digest: &str, size: u64| json!({"mediaType": MANIFEST_TYPE, "digest": digest, "size": size, "platform": platform(architecture)});
    let other = format!("sha256:{}", "ab".repeat(32));
    let put = |entries: Value| {
        let list = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries});
        let (digest, size) = layout.put_blob(list.to_string().as_bytes()).unwrap();
        let mut index = Index::default();
        let mut nested = Descriptor::new(INDEX_TYPE, &digest, size);
        nested.annotations.insert("org.opencontainers.image.ref.name".into(), "all".into());
        index.set(nested);
        layout.replace_index(&index).unwrap();
    };
    put(json!([on("s390y", &other, 1), on(machine.architecture, entry.digest_text(), entry.size)]));
    for reference in ["oci:image:all", "oci:image"] {
        assert_eq!(fixture.open(reference).unwrap().manifest_digest, image.manifest_digest);
    }
    put(json!([on("s390y", &other, 1)]));
    let (kind, line) = fixture.refusal("oci:image:all");
    assert_eq!(kind, Kind::NotFound);
    assert!(line.contains("'linux/s390y'") && line.contains(machine.architecture), "{line}");
    // An index that contains itself cannot exist, but a deep one can.
    for _ in 0..5 {
        let top = layout.index().unwrap().manifests[0].clone();
        put(
            json!([{"mediaType": INDEX_TYPE, "digest": top.digest_text(), "size": top.size, "platform": platform(machine.architecture)}]),
        );
    }
    assert!(fixture.refusal("oci:image:all").1.contains("nested deeper"));
}

#[test]
fn a_missing_or_ambiguous_image_lists_what_there_is() {
    let fixture = Fixture::new();
    assert_eq!(fixture.refusal("oci:absent").0, Kind::NotFound);
    assert_eq!(fixture.refusal("oci-archive:absent.tar").0, Kind::NotFound);
    assert!(fixture.refusal("oci:motd").1.contains("oci-archive:FILE"));
    assert!(fixture.refusal("oci-archive:image").1.contains("oci:DIR"));
    let (kind, line) = fixture.refusal("oci:image:v2");
    assert_eq!(kind, Kind::NotFound);
    assert!(line.contains("no tag 'v2'; the tags are 'v1'"), "{line}");
    for number in 0..12 {
        write_image(&fixture.path("image"), &format!("t{number:02}"), &number.to_string());
    }
    let (kind, line) = fixture.refusal("oci:image");
    assert_eq!(kind, Kind::Invalid);
    assert!(line.contains("13 images match") && line.contains("'t08' and 3 more"), "{line}");
    fs::create_dir(fixture.path("empty")).unwrap();
    assert!(fixture.refusal("oci:empty").1.contains("no file 'oci-layout'"));
    Layout::create(fixture.path("empty")).unwrap();
    assert!(fixture.refusal("oci:empty").1.contains("the index is empty"));
}

#[test]
fn a_broken_index_or_marker_is_named() {
    let fixture = Fixture::new();
    let good = fs::read(fixture.path("image/index.json")).unwrap();
    for (text, words) in [
        ("{\"schemaVersion\":2,\n \"manifests\": [}", "line 2 column"),
        ("", "EOF"),
        ("{\"schemaVersion\":1,\"manifests\":[]}", "schema version 1"),
        ("{\"schemaVersion\":2}", "manifests"),
        ("{\"schemaVersion\":2,\"manifests\":[{\"digest\":\"x\",\"size\":-1}]}", "line 1 column"),
        ("{\"schemaVersion\":2,\"manifests\":[{\"digest\":\"sha256:../../x\",\"size\":1}]}", "sha256:../../x"),
        ("{\"schemaVersion\":2,\"manifests\":[{\"digest\":\"sha512:00\",\"size\":1}]}", "sha512:00"),
    ] {
        fs::write(fixture.path("image/index.json"), text).unwrap();
        let (_, line) = fixture.refusal("oci:image");
        assert!(line.contains(words), "{text} gives {line}");
    }
    File::create(fixture.path("image/index.json")).unwrap().set_len((32 << 20) + 1).unwrap();
    assert!(fixture.refusal("oci:image").1.contains("at most 33554432"));
    fs::remove_file(fixture.path("image/index.json")).unwrap();
    let (kind, line) = fixture.refusal("oci:image");
    assert_eq!(kind, Kind::NotFound);
    assert!(line.contains("index.json"), "{line}");
    fs::write(fixture.path("image/index.json"), good).unwrap();
    fs::write(fixture.path("image/oci-layout"), "{\"imageLayoutVersion\":\"2.0.0\"}").unwrap();
    assert_eq!(fixture.refusal("oci:image").0, Kind::Unsupported);
    fs::write(fixture.path("image/oci-layout"), "junk").unwrap();
    assert!(fixture.refusal("oci:image").1.contains("oci-layout"));
}

#[test]
fn blobs_with_wrong_content_or_size_are_refused() {
    let fixture = Fixture::new();
    let image = fixture.open("oci:image:v1").unwrap();
    let layout = Layout::open(fixture.path("image")).unwrap();
    let config = image.manifest.config.digest().unwrap();
    for (digest, reason) in [(&image.manifest_digest, "content has digest"), (&config, "content has digest")] {
        let path = layout.blob_path(digest);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[10] ^= 1;
        fs::write(&path, &bad).unwrap();
        let (kind, line) = fixture.refusal("oci:image:v1");
        assert_eq!(kind, Kind::Damaged);
        assert!(line.contains(reason) && line.contains(&digest.to_string()), "{line}");
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(fixture.refusal("oci:image:v1").1.contains("its descriptor says"));
        fs::remove_file(&path).unwrap();
        assert_eq!(fixture.refusal("oci:image:v1").0, Kind::NotFound);
        fs::write(&path, &good).unwrap();
    }
    let layer = layout.blob_path(&image.layers[1].digest);
    let good = fs::read(&layer).unwrap();
    fs::write(&layer, &good[..good.len() / 2]).unwrap();
    let (kind, line) = fixture.refusal("oci:image:v1");
    assert_eq!(kind, Kind::Damaged);
    assert!(line.contains(&format!("{} bytes", good.len() / 2)), "{line}");
    fs::rename(&layer, fixture.path("elsewhere")).unwrap();
    symlink(fixture.path("elsewhere"), &layer).unwrap();
    assert!(fixture.refusal("oci:image:v1").1.contains("not a regular file"));
    fs::remove_file(&layer).unwrap();
    nix::unistd::mkfifo(&layer, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(fixture.refusal("oci:image:v1").1.contains("not a regular file"));
}

#[test]
fn manifests_that_cannot_be_unpacked_are_refused() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 8] = [
        (|m| drop(m["layers"].as_array_mut().unwrap().pop()), "the manifest has 1 layers, the config 2"),
        (
            |m| m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar"),
            "lies elsewhere",
        ),
        (|m| m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "encrypted"),
        (|m| m["layers"][0]["mediaType"] = json!("text/plain"), "'text/plain'"),
        (|m| m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json"), "no container image"),
        (|m| m["manifests"] = json!([]), "manifest and an index at once"),
        (|m| m["mediaType"] = json!(INDEX_TYPE), "the entry says"),
        (|m| m["schemaVersion"] = json!(1), "schema version 1"),
    ];
    for (change, words) in cases {
        let fixture = Fixture::new();
        fixture.change_manifest(change);
        let (_, line) = fixture.refusal("oci:image:v1");
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn archives_that_are_no_layouts_or_lead_out_are_refused() {
    let fixture = Fixture::new();
    let (image, tar) = (fixture.text("image"), fixture.text("good.tar"));
    tool("tar", &["-C", &image, "-cf", &tar, "."]);
    let good = fs::read(&tar).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(fixture.path("bad.tar"), bytes).unwrap();
        fixture.refusal("oci-archive:bad.tar").1
    };
    assert!(refused(b"this is no tar file").contains("tar header"));
    assert!(refused(&[b'x'; 2048]).contains("no tar header"));
    assert!(refused(&[]).contains("the file ends at byte 0, before the end of the archive: it was cut short"));
    assert!(refused(&[0; 1024]).contains("no file 'oci-layout'"));
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(refused(&flipped).contains("tar header at byte 0"));
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &good).unwrap();
        encoder.finish().unwrap()
    };
    assert!(refused(&gzip).contains("compressed as a whole"));
    let layer = fixture.open("oci:image").unwrap().layers[0].descriptor.size;
    assert!(layer > 100_000, "busybox is the larger part of the archive");
    assert!(refused(&good[..good.len() / 2]).contains("inside an entry"));
    for part in ["./oci-layout", "./blobs/sha256/"] {
        // Between two entries, where nothing looks torn.
        let header = good.chunks(512).rposition(|block| block.starts_with(part.as_bytes())).unwrap() * 512;
        let words = format!("the file ends at byte {header}, before the end of the archive: it was cut short");
        let line = refused(&good[..header]);
        assert!(line.contains(&words) && line.ends_with("copy the archive again"), "{line}");
    }

    let list = |args: &[&str]| tool("tar", &[&["-C", &image, "-P", "-cf", &fixture.text("bad.tar")], args].concat());
    list(&["--transform=s,^oci-layout,../oci-layout,", "oci-layout"]);
    assert!(fixture.refusal("oci-archive:bad.tar").1.contains("'../oci-layout': its path leads out"));
    list(&["--transform=s,^oci-layout,/oci-layout,", "oci-layout"]);
    assert!(fixture.refusal("oci-archive:bad.tar").1.contains("leads out"));
    list(&["oci-layout"]);
    assert!(fixture.refusal("oci-archive:bad.tar").1.contains("no file 'index.json'"));
    fs::rename(fixture.path("image/index.json"), fixture.path("image/real")).unwrap();
    symlink("real", fixture.path("image/index.json")).unwrap();
    list(&["oci-layout", "index.json", "real", "blobs"]);
    assert!(fixture.refusal("oci-archive:bad.tar").1.contains("must be a regular file"));
    list(&["oci-layout", "--transform=s,^real,index.json,", "real"]);
    let (kind, line) = fixture.refusal("oci-archive:bad.tar");
    assert_eq!(kind, Kind::NotFound);
    assert!(line.contains("the archive does not have it"), "{line}");
}
