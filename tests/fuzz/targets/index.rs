//! What an image layout says about itself: index, manifest, configuration. Whatever is accepted survives being written
//! and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use regen::image::ImageConfig;
use regen::image::manifest::{Descriptor, Index, LayerType, Manifest};
use regen::image::platform::machine;
use regen::image::process::{Overrides, process_config};

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = Index::parse(data) {
        let again = Index::parse(&index.to_json().unwrap()).unwrap();
        assert_eq!(again, index);
        let entries: Vec<&Descriptor> = index.manifests.iter().collect();
        // Which it is depends on the machine; that there is an answer does not.
        let _ = machine().choose(&entries);
        for entry in entries {
            let _ = (entry.digest(), entry.tag(), LayerType::parse(entry.digest_text()));
        }
    }
    if let Ok(manifest) = Manifest::parse(data) {
        assert_eq!(Manifest::parse(&manifest.to_json().unwrap()).unwrap(), manifest);
    }
    if let Ok(config) = ImageConfig::parse(data) {
        let again = ImageConfig::parse(&config.to_json().unwrap()).unwrap();
        assert_eq!(again, config);
        let _ = process_config(&config, &Overrides::default());
    }
});
