//! A file's bytes, unpacked where they are gzip, and what unknown bytes look like.

use std::io::Read;
use std::path::Path;

use artifact::StageError;
use bytes::Bytes;
use dataset::MappedFile;
use flate2::bufread::MultiGzDecoder;

/// What gzip files begin with (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Memory taken before a gzip stream has shown that it really holds so much.
const FIRST_BUFFER: u64 = 64 << 20;

/// An opened file: mapped, and told from its first bytes (not its name) whether it is gzipped.
pub(crate) struct Content {
    name: String,
    raw: Bytes,
}

impl Content {
    /// Opens a file; `name` is its path within the input, as errors show it.
    pub(crate) fn open(name: &str, path: &Path) -> Result<Self, StageError> {
        Ok(Self { name: name.to_owned(), raw: MappedFile::open(path)?.bytes() })
    }

    /// The file's name in errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True when the file is gzipped.
    pub(crate) fn is_gzip(&self) -> bool {
        self.raw.starts_with(&GZIP_MAGIC)
    }

    /// The first bytes of the content, at most so many: a slice of the map, or unpacked into memory that grows only with
    /// what really comes out.
    pub(crate) fn first(&self, at_most: u64) -> Result<Bytes, StageError> {
        if !self.is_gzip() {
            let end = usize::try_from(at_most).unwrap_or(usize::MAX).min(self.raw.len());
            return Ok(self.raw.slice(..end));
        }
        let mut unpacked = Vec::with_capacity(at_most.min(FIRST_BUFFER) as usize);
        let mut decoder = MultiGzDecoder::new(&self.raw[..]);
        match decoder.by_ref().take(at_most).read_to_end(&mut unpacked) {
            Ok(_) => Ok(unpacked.into()),
            Err(error) => Err(self.broken_gzip(&error, self.raw.len() - decoder.get_ref().len(), unpacked.len())),
        }
    }

    /// The whole content, refused when a gzip stream unpacks to more than `max_bytes`.
    pub(crate) fn whole(&self, max_bytes: u64) -> Result<Bytes, StageError> {
        if !self.is_gzip() {
            return Ok(self.raw.clone());
        }
        let content = self.first(max_bytes.saturating_add(1))?;
        if content.len() as u64 > max_bytes {
            return Err(self.too_large(max_bytes));
        }
        Ok(content)
    }

    /// The error for a gzip stream that unpacks to more than it may.
    pub(crate) fn too_large(&self, max_bytes: u64) -> StageError {
        StageError::new(format!("{} bytes of gzip unpack to more than {max_bytes} bytes", self.raw.len()))
            .at(&self.name)
            .help("if that is right, raise `max_bytes`, or give the file unpacked: plain files are mapped and have no limit")
    }

    fn broken_gzip(&self, error: &std::io::Error, at: usize, unpacked: usize) -> StageError {
        let message = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                format!("the gzip stream breaks off at byte {at}, where the file ends; {unpacked} bytes could be unpacked")
            }
            _ => format!("the gzip stream is damaged near byte {at} of {}; {unpacked} bytes could be unpacked", self.raw.len()),
        };
        StageError::new(message).at(&self.name).because(error).help("the file is incomplete or damaged: download or copy it again")
    }
}

/// What unknown bytes look like, for the person who expected something else.
pub(crate) fn describe(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "the file is empty".to_owned();
    }
    let head = &bytes[..bytes.len().min(16)];
    let shown = match head.iter().all(|byte| (0x20..0x7f).contains(byte) || byte.is_ascii_whitespace()) {
        true => format!("`{}`", String::from_utf8_lossy(head).escape_debug()),
        false => head[..head.len().min(8)].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    };
    match looks_like(bytes) {
        Some(kind) => format!("its first bytes are {shown}: {kind}"),
        None => format!("its first bytes are {shown}"),
    }
}

/// The kind of file that begins so, where it is known.
pub(crate) fn looks_like(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: &[(&[u8], &str)] = &[
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"GIF8", "a GIF image"),
        (b"II*\0", "a TIFF image"),
        (b"MM\0*", "a TIFF image"),
        (b"%PDF", "a PDF document"),
        (b"PK\x03\x04", "a zip archive (or an Office document, or NumPy's npz)"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"PAR1", "Parquet"),
        (b"ARROW1", "an Arrow file"),
        (b"\x89HDF", "HDF5"),
        (b"SQLite format 3", "an SQLite database"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
        (b"\xff\xfe", "text in UTF-16"),
        (b"\xfe\xff", "text in UTF-16"),
    ];
    if let Some((_, kind)) = KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(kind);
    }
    if bytes.len() > 11 && bytes.starts_with(b"RIFF") && &bytes[8..12] == b"WEBP" {
        return Some("a WebP image");
    }
    // Two letters are too few to tell: `BMI,age` begins a table.
    if bytes.starts_with(b"BM") && bytes.get(6..10) == Some(&[0; 4]) {
        return Some("a BMP image");
    }
    let text = bytes.trim_ascii_start();
    let starts = |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()));
    if starts("<!doctype html") || starts("<html") {
        return Some("an HTML page, such as a server's error message");
    }
    if starts("<?xml") || starts("<Error") {
        return Some("XML, such as a server's error message");
    }
    bytes.iter().take(512).all(|byte| *byte == 0).then_some("zeros, as a file has that was never written to its end")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::gzip;

    fn open(bytes: &[u8]) -> Content {
        Content { name: "some.gz".into(), raw: Bytes::copy_from_slice(bytes) }
    }

    #[test]
    fn gzip_is_told_from_its_bytes_and_unpacked_only_as_far_as_asked() {
        let packed = open(&[gzip(b"hello "), gzip(b"world")].concat());
        assert!(packed.is_gzip());
        assert_eq!(&packed.first(3).unwrap()[..], b"hel");
        assert_eq!(&packed.whole(11).unwrap()[..], b"hello world");
        assert_eq!(&open(b"plain").whole(0).unwrap()[..], b"plain");
    }

    #[test]
    fn a_truncated_gzip_is_named_with_its_byte_offset() {
        let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let packed = gzip(&noise);
        let half = packed.len() / 2;
        let error = open(&packed[..half]).whole(u64::MAX).unwrap_err();
        assert!(error.message.contains(&format!("breaks off at byte {half}")), "{error}");
        assert_eq!(error.place.as_deref(), Some("some.gz"));
    }

    #[test]
    fn a_gzip_whose_checksum_is_wrong_is_damaged() {
        let mut packed = gzip(b"hello");
        let at = packed.len() - 8;
        packed[at] ^= 1;
        assert!(open(&packed).whole(u64::MAX).unwrap_err().message.contains("damaged"));
    }

    #[test]
    fn a_decompression_bomb_is_stopped_at_the_limit() {
        let bomb = open(&gzip(&vec![0; 10 << 20]));
        let error = bomb.whole(1 << 20).unwrap_err();
        assert!(error.message.contains("more than 1048576 bytes"), "{error}");
        assert_eq!(bomb.first(10).unwrap().len(), 10);
    }

    #[test]
    fn unknown_bytes_are_described_in_words() {
        assert_eq!(describe(b""), "the file is empty");
        assert!(describe(b"<!DOCTYPE html><html>").contains("an HTML page"));
        assert!(describe(b"version https://git-lfs.github.com/spec/v1").contains("git lfs pull"));
        assert_eq!(describe(&[1, 2, 0xfe]), "its first bytes are 01 02 fe");
        assert!(describe(&[0; 600]).contains("zeros"));
        assert!(describe(b"hello").contains("`hello`"));
    }
}
