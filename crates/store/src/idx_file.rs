//! The IDX format: a big-endian header, then the values of an array, last dimension fastest.
//!
//! ```text
//! 0 0 TYPE NDIM | size of dimension 1 (u32) | … | size of dimension NDIM (u32) | values
//! ```
//!
//! Source: "The IDX file format", at the end of the MNIST page (Y. LeCun, C. Cortes, C. Burges).

use std::path::Path;

use artifact::StageError;
use bytes::Bytes;

use crate::content::{Content, describe};

/// The type of an array's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    U8,
    I8,
    I16,
    I32,
    F32,
    F64,
}

impl Element {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x08 => Self::U8,
            0x09 => Self::I8,
            0x0b => Self::I16,
            0x0c => Self::I32,
            0x0d => Self::F32,
            0x0e => Self::F64,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::U8 => "unsigned byte (0x08)",
            Self::I8 => "signed byte (0x09)",
            Self::I16 => "short (0x0b)",
            Self::I32 => "int (0x0c)",
            Self::F32 => "float (0x0d)",
            Self::F64 => "double (0x0e)",
        }
    }
}

/// An IDX file whose header agrees with its length.
#[derive(Debug)]
pub(crate) struct IdxFile {
    pub(crate) name: String,
    pub(crate) element: Element,
    pub(crate) dimensions: Vec<usize>,
    content: Bytes,
}

impl IdxFile {
    /// Reads a file, plain or gzipped. No memory is taken on the header's word.
    pub(crate) fn read(name: &str, path: &Path, max_bytes: u64) -> Result<Self, StageError> {
        let content = Content::open(name, path)?;
        let (element, dimensions) = header(&content)?;
        let in_words = dimensions.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
        let start = header_bytes(&dimensions);
        let values = dimensions.iter().try_fold(element.bytes() as u64, |all, size| all.checked_mul(*size as u64));
        let Some(expected) = values.and_then(|values| values.checked_add(start as u64)) else {
            return Err(lie(name, format!("the header says {in_words} values, more than any file can hold")));
        };
        // One byte more than expected, to see whether something follows; one more than allowed, to see that it is too much.
        let limit = if content.is_gzip() { max_bytes } else { u64::MAX };
        let found = content.first(expected.min(limit).saturating_add(1))?;
        if found.len() as u64 > limit {
            return Err(content.too_large(max_bytes));
        }
        if found.len() as u64 != expected {
            let says = format!("the header says {in_words} values, {expected} bytes with the header");
            let has = match (found.len() as u64) < expected {
                true => format!("the file holds {} bytes{}", found.len(), if content.is_gzip() { " unpacked" } else { "" }),
                false => "the file goes on after them".to_owned(),
            };
            return Err(lie(name, format!("{says}, and {has}")));
        }
        Ok(Self { name: name.to_owned(), element, dimensions, content: found })
    }

    /// The values' bytes, big-endian.
    pub(crate) fn values(&self) -> &[u8] {
        &self.content[header_bytes(&self.dimensions)..]
    }

    /// The values as whole numbers; none for floats.
    pub(crate) fn integers(&self) -> Option<Vec<i32>> {
        let values = self.values();
        Some(match self.element {
            Element::U8 => values.iter().map(|value| i32::from(*value)).collect(),
            Element::I8 => values.iter().map(|value| i32::from(*value as i8)).collect(),
            Element::I16 => values.chunks_exact(2).map(|pair| i32::from(i16::from_be_bytes([pair[0], pair[1]]))).collect(),
            Element::I32 => values.chunks_exact(4).map(|four| i32::from_be_bytes([four[0], four[1], four[2], four[3]])).collect(),
            Element::F32 | Element::F64 => return None,
        })
    }
}

fn header_bytes(dimensions: &[usize]) -> usize {
    4 + 4 * dimensions.len()
}

fn header(content: &Content) -> Result<(Element, Vec<usize>), StageError> {
    let head = content.first(4 + 4 * 255)?;
    let not_idx = |what: String| {
        StageError::new(what)
            .at(content.name())
            .help("an IDX file begins with two zero bytes, the type of its values and the number of its dimensions")
    };
    let element = match head.get(..4) {
        Some([0, 0, code, 1..=255]) => Element::from_code(*code),
        _ => None,
    };
    let Some(element) = element else {
        return Err(not_idx(format!("this is no IDX file: {}", describe(&head))));
    };
    let count = usize::from(head[3]);
    let Some(sizes) = head.get(4..4 + 4 * count) else {
        return Err(not_idx(format!("the header breaks off: {count} dimensions are announced, and the file holds {} bytes", head.len())));
    };
    let sizes = sizes.chunks_exact(4).map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize);
    Ok((element, sizes.collect()))
}

fn lie(name: &str, message: String) -> StageError {
    StageError::new(message).at(name).help("the file is incomplete or its header is wrong: get it again, or write it again")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{gzip, idx};

    fn read(bytes: &[u8]) -> Result<IdxFile, StageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, bytes).unwrap();
        IdxFile::read("some-idx", &path, 1 << 20)
    }

    #[test]
    fn plain_and_gzipped_files_read_alike() {
        let plain = idx(8, &[2, 3], &[1, 2, 3, 4, 5, 6]);
        for bytes in [plain.clone(), gzip(&plain)] {
            let file = read(&bytes).unwrap();
            assert_eq!((file.element, &file.dimensions[..], file.values()), (Element::U8, &[2, 3][..], &[1, 2, 3, 4, 5, 6][..]));
        }
    }

    #[test]
    fn signed_and_wide_labels_are_read_big_endian() {
        assert_eq!(read(&idx(0x0b, &[2], &[0xff, 0xfe, 1, 0])).unwrap().integers().unwrap(), [-2, 256]);
        assert_eq!(read(&idx(0x0c, &[1], &[0, 0, 1, 2])).unwrap().integers().unwrap(), [258]);
        assert_eq!(read(&idx(0x09, &[1], &[0xff])).unwrap().integers().unwrap(), [-1]);
        assert!(read(&idx(0x0d, &[1], &[0; 4])).unwrap().integers().is_none());
    }

    #[test]
    fn a_header_that_promises_more_than_the_file_holds_says_both_counts() {
        for bytes in [idx(8, &[4_000_000_000, 28, 28], &[7; 784]), gzip(&idx(8, &[4_000_000_000, 28, 28], &[7; 784]))] {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains("4000000000 × 28 × 28") && error.contains("800 bytes") && error.contains("some-idx"), "{error}");
        }
    }

    #[test]
    fn dimensions_whose_product_overflows_are_refused() {
        let error = read(&idx(8, &[u32::MAX, u32::MAX, u32::MAX], &[])).unwrap_err();
        assert!(error.message.contains("more than any file can hold"), "{error}");
    }

    #[test]
    fn bytes_after_the_values_are_noticed() {
        for bytes in [idx(8, &[2], &[1, 2, 3]), gzip(&idx(8, &[2], &[1, 2, 3]))] {
            assert!(read(&bytes).unwrap_err().message.contains("goes on after them"));
        }
    }

    #[test]
    fn a_wrong_magic_number_shows_what_is_there() {
        let error = read(b"<html>404 not found</html>").unwrap_err();
        assert!(error.message.contains("no IDX file") && error.message.contains("an HTML page"), "{error}");
        assert!(read(b"").unwrap_err().message.contains("the file is empty"));
        assert!(read(&[0, 0, 7, 1, 0, 0, 0, 0]).unwrap_err().message.contains("no IDX file"));
    }

    #[test]
    fn a_header_that_breaks_off_is_named() {
        assert!(read(&[0, 0, 8, 3, 0, 0]).unwrap_err().message.contains("3 dimensions are announced"));
    }

    #[test]
    fn a_gzip_that_unpacks_to_too_much_is_refused_though_its_header_is_honest() {
        let error = read(&gzip(&idx(8, &[2 << 20], &vec![0; 2 << 20]))).unwrap_err();
        assert!(error.message.contains("unpack to more than 1048576 bytes"), "{error}");
    }
}
