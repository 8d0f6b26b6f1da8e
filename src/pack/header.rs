//! Writes one file's headers: ustar (POSIX.1-2001), with PAX records for all that ustar has no room for.
//!
//! Records are made here and not by the tar crate, whose writer takes only UTF-8 keys, and whose reader ends a value
//! at its first newline.

use tar::{EntryType, Header};

use super::attribute::Attribute;
use crate::error::{Error, Kind, Result};

/// The unit of everything in a tar stream.
pub(super) const BLOCK: usize = 512;
/// Records with the attributes of files, as star wrote them first.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";
/// The largest set of records of one file, written or read.
pub(super) const RECORDS_CAP: u64 = 16 << 20;

/// What a tar stream says about a file, apart from its content.
#[derive(Debug)]
pub(super) struct Meta<'a> {
    pub(super) kind: EntryType,
    /// The path as other tools shall see it.
    pub(super) stored: &'a [u8],
    /// The path that it has, if that is another one.
    pub(super) real: Option<&'a [u8]>,
    /// Target of a link, with the real one of an escaped hard link.
    pub(super) link: Option<(&'a [u8], Option<&'a [u8]>)>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970, which may be negative, and nanoseconds after them.
    pub(super) mtime: (i64, u32),
    /// Major and minor number.
    pub(super) device: (u32, u32),
    pub(super) attributes: &'a [Attribute],
    /// Bytes that follow in the stream.
    pub(super) size: u64,
    /// Size of the file, if what follows is a map of its data and the data.
    pub(super) sparse: Option<u64>,
}

impl Meta<'_> {
    /// The headers of an empty file that stands for a deletion.
    pub(super) fn mark<'a>(stored: &'a [u8], real: Option<&'a [u8]>) -> Meta<'a> {
        Meta {
            kind: EntryType::Regular,
            stored,
            real,
            link: None,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            device: (0, 0),
            attributes: &[],
            size: 0,
            sparse: None,
        }
    }

    /// All header blocks of the file.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut header = Header::new_ustar();
        let mut records = Vec::new();
        self.put_names(&mut header, &mut records);
        self.put_numbers(&mut header, &mut records);
        for attribute in self.attributes {
            record(&mut records, &[XATTR, &encode_keyword(&attribute.name)].concat(), &attribute.value);
        }
        if records.len() as u64 > RECORDS_CAP {
            let cause = format!("{} bytes of attributes, at most {RECORDS_CAP} can be packed", records.len());
            return Err(Error::new(Kind::Unsupported, "write its headers", cause));
        }
        header.set_entry_type(self.kind);
        header.set_cksum();
        let mut blocks = Vec::with_capacity(3 * BLOCK + records.len());
        if !records.is_empty() {
            blocks.extend_from_slice(records_header(records.len() as u64).as_bytes());
            blocks.extend_from_slice(&records);
            blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
        }
        blocks.extend_from_slice(header.as_bytes());
        Ok(blocks)
    }

    fn put_names(&self, header: &mut Header, records: &mut Vec<u8>) {
        if let Some(size) = self.sparse {
            record(records, b"GNU.sparse.major", b"1");
            record(records, b"GNU.sparse.minor", b"0");
            record(records, b"GNU.sparse.name", self.stored);
            record(records, b"GNU.sparse.realsize", size.to_string().as_bytes());
            // What a reader that knows no sparse files finds must not pass for the file.
            put_path(header, records, b"GNUSparseFile.0/data");
        } else if self.kind.is_dir() {
            put_path(header, records, &[if self.stored.is_empty() { b"." } else { self.stored }, b"/"].concat());
        } else {
            put_path(header, records, self.stored);
        }
        if let Some(real) = self.real {
            record(records, b"REGEN.path", real);
        }
        let Some((target, real)) = self.link else { return };
        let field = fields(header).linkname.as_mut_slice();
        if target.len() <= field.len() {
            field[..target.len()].copy_from_slice(target);
        } else {
            record(records, b"linkpath", target);
        }
        if let Some(real) = real {
            record(records, b"REGEN.linkpath", real);
        }
    }

    fn put_numbers(&self, header: &mut Header, records: &mut Vec<u8>) {
        header.set_mode(self.mode & 0o7777);
        let mut put = |key: &[u8], value: u64, digits: u32| {
            if value < 1 << (3 * digits) {
                return value;
            }
            record(records, key, value.to_string().as_bytes());
            0
        };
        header.set_uid(put(b"uid", self.uid.into(), 7));
        header.set_gid(put(b"gid", self.gid.into(), 7));
        header.set_size(put(b"size", self.size, 11));
        let plain = u64::try_from(self.mtime.0).ok().filter(|seconds| *seconds < 1 << 33);
        header.set_mtime(plain.unwrap_or(0));
        if plain.is_none() || self.mtime.1 != 0 {
            record(records, b"mtime", format_time(self.mtime).as_bytes());
        }
        octal(&mut fields(header).dev_major, self.device.0);
        octal(&mut fields(header).dev_minor, self.device.1);
    }
}

fn records_header(size: u64) -> Header {
    let mut header = Header::new_ustar();
    fields(&mut header).name[..17].copy_from_slice(b"PaxHeaders.0/file");
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_entry_type(EntryType::XHeader);
    header.set_cksum();
    header
}

/// Stores a path in the header's two fields, or in a record if it does not fit.
fn put_path(header: &mut Header, records: &mut Vec<u8>, path: &[u8]) {
    let ustar = fields(header);
    if path.len() <= ustar.name.len() {
        ustar.name[..path.len()].copy_from_slice(path);
        return;
    }
    // The slash between the fields is not stored; a directory's own slash at the end stays with the name.
    let first = path.len() - ustar.name.len() - 1;
    let slash = path.iter().enumerate().skip(first.max(1)).find(|(at, byte)| **byte == b'/' && at + 1 < path.len());
    match slash {
        Some((at, _)) if at <= ustar.prefix.len() => {
            ustar.prefix[..at].copy_from_slice(&path[..at]);
            ustar.name[..path.len() - at - 1].copy_from_slice(&path[at + 1..]);
        }
        _ => {
            let length = ustar.name.len();
            ustar.name.copy_from_slice(&path[..length]);
            record(records, b"path", path);
        }
    }
}

/// The fields of a header that was made by `Header::new_ustar`.
fn fields(header: &mut Header) -> &mut tar::UstarHeader {
    match header.as_ustar_mut() {
        Some(fields) => fields,
        None => unreachable!("a header made as ustar is ustar"),
    }
}

fn octal(field: &mut [u8; 8], number: u32) {
    // Linux has 20 bits for a minor number: seven digits hold 21.
    field[..7].copy_from_slice(format!("{:07o}", number & 0o7_777_777).as_bytes());
}

/// Appends `LENGTH KEY=VALUE\n`, where LENGTH counts itself too.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A keyword ends at its first `=`: GNU tar writes those of an attribute's name as `%3D`.
fn encode_keyword(name: &[u8]) -> Vec<u8> {
    let mut keyword = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'=' => keyword.extend_from_slice(b"%3D"),
            b'%' => keyword.extend_from_slice(b"%25"),
            other => keyword.push(*other),
        }
    }
    keyword
}

/// Decimal seconds: (-2, 500_000_000) is `-1.5`.
fn format_time((seconds, nanoseconds): (i64, u32)) -> String {
    let whole = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if whole < 0 { "-" } else { "" };
    let (whole, fraction) = (whole.unsigned_abs() / 1_000_000_000, whole.unsigned_abs() % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{}", format!("{fraction:09}").trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_the_digits_of_its_own_length() {
        for value in [0, 1, 90, 91, 92, 93, 980, 990, 991, 992, 993] {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; value]);
            let digits = records.split(|byte| *byte == b' ').next().unwrap();
            assert_eq!(std::str::from_utf8(digits).unwrap().parse::<usize>().unwrap(), records.len(), "{value}");
        }
    }

    #[test]
    fn times_are_decimal_seconds_also_before_1970() {
        assert_eq!(format_time((1, 0)), "1");
        assert_eq!(format_time((0, 1)), "0.000000001");
        assert_eq!(format_time((-2, 500_000_000)), "-1.5");
        assert_eq!(format_time((-1, 999_999_999)), "-0.000000001");
    }

    #[test]
    fn long_paths_are_split_before_they_need_a_record() {
        let mut header = Header::new_ustar();
        let mut records = Vec::new();
        let path = format!("{}/{}/", "p".repeat(90), "n".repeat(99));
        put_path(&mut header, &mut records, path.as_bytes());
        assert!(records.is_empty());
        assert_eq!(header.path_bytes().as_ref(), path.as_bytes());
        put_path(&mut header, &mut records, "n".repeat(101).as_bytes());
        assert!(!records.is_empty());
    }
}
