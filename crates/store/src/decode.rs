//! One encoded image to raw pixels.

use std::io::Cursor;

use dataset::ImageShape;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::imageops::{FilterType, resize};
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageError, Limits, RgbImage};

use crate::content::describe;
use crate::guard;

/// What every image is brought to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// 1 (grey) or 3 (red, green, blue); none leaves it as the image has it.
    pub(crate) channels: Option<usize>,
    /// Height and width to resize to; none leaves the size.
    pub(crate) size: Option<[u32; 2]>,
    /// Images of more pixels are not decoded.
    pub(crate) max_pixels: u64,
}

/// Pixels `[height, width, channels]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) shape: ImageShape,
    pub(crate) pixels: Vec<u8>,
    /// True when the file had transparency, which is dropped.
    pub(crate) had_alpha: bool,
}

/// Why an image cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecodable {
    #[error("it is neither JPEG nor PNG; {0}")]
    Foreign(String),
    #[error("the JPEG breaks off: its end marker is missing after {0} bytes")]
    Truncated(usize),
    #[error("it has {width} × {height} pixels, and `max_pixels` is {most}")]
    TooLarge { width: u32, height: u32, most: u64 },
    #[error("it has {found} bytes, and raw pixels of {shape} have {}", .shape.bytes())]
    WrongLength { found: usize, shape: ImageShape },
    #[error("there is none: the value is null")]
    Missing,
    #[error("{0}")]
    Damaged(String),
}

impl From<ImageError> for Undecodable {
    fn from(error: ImageError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// Decodes a JPEG or PNG, told from its bytes. 16-bit values are brought to 8, palettes to colours, transparency is
/// dropped, and a camera's orientation (EXIF) is applied, so that pixels stand as a viewer shows them.
pub(crate) fn decode(bytes: &[u8], wanted: &Wanted) -> Result<Picture, Undecodable> {
    let image = guard::caught(|| dynamic(bytes, wanted.max_pixels)).map_err(Undecodable::Damaged)??;
    let had_alpha = image.color().has_alpha();
    let channels = wanted.channels.unwrap_or(if image.color().has_color() { 3 } else { 1 });
    let (height, width, pixels) = match channels {
        1 => sized_grey(image.into_luma8(), wanted.size),
        _ => sized_colour(image.into_rgb8(), wanted.size),
    };
    Ok(Picture { shape: ImageShape { height: height as usize, width: width as usize, channels }, pixels, had_alpha })
}

fn dynamic(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage, Undecodable> {
    if bytes.starts_with(b"\xff\xd8\xff") {
        if !jpeg_is_whole(bytes) {
            return Err(Undecodable::Truncated(bytes.len()));
        }
        // Looking for an orientation parses the headers again; most files have none to look for.
        let has_exif = bytes.windows(6).take(1 << 16).any(|window| window == b"Exif\0\0");
        finish(JpegDecoder::new(Cursor::new(bytes))?, max_pixels, has_exif)
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        let mut limits = Limits::default();
        // Up to 8 bytes a pixel (16 bits, four channels), and some room for text chunks.
        limits.max_alloc = Some(max_pixels.saturating_mul(8).saturating_add(16 << 20));
        finish(PngDecoder::with_limits(Cursor::new(bytes), limits)?, max_pixels, true)
    } else {
        Err(Undecodable::Foreign(describe(bytes)))
    }
}

fn finish(mut decoder: impl ImageDecoder, most: u64, has_exif: bool) -> Result<DynamicImage, Undecodable> {
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > most {
        return Err(Undecodable::TooLarge { width, height, most });
    }
    // A damaged orientation is no damage to the pixels.
    let orientation = if has_exif { decoder.orientation().unwrap_or(Orientation::NoTransforms) } else { Orientation::NoTransforms };
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn sized_grey(image: GrayImage, size: Option<[u32; 2]>) -> (u32, u32, Vec<u8>) {
    let image = match size {
        Some([height, width]) if (height, width) != (image.height(), image.width()) => resize(&image, width, height, FilterType::Triangle),
        _ => image,
    };
    (image.height(), image.width(), image.into_raw())
}

fn sized_colour(image: RgbImage, size: Option<[u32; 2]>) -> (u32, u32, Vec<u8>) {
    let image = match size {
        Some([height, width]) if (height, width) != (image.height(), image.width()) => resize(&image, width, height, FilterType::Triangle),
        _ => image,
    };
    (image.height(), image.width(), image.into_raw())
}

/// True unless the JPEG's scan data lacks the end marker. The decoder fills what is missing with grey and says nothing,
/// which would give half-grey examples. (ITU-T T.81, B.1.1: segments `FF marker length …`, then after SOS the scan, in
/// which FF D9 can only be EOI.)
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let Some(0xff) = bytes.get(at) else { return at < bytes.len() };
        match bytes.get(at + 1) {
            None => return false,
            Some(0xff) => at += 1,
            Some(0xd9) => return true,
            Some(0x01 | 0xd0..=0xd7) => at += 2,
            // From the end: it is usually there.
            Some(0xda) => return bytes[at..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]),
            Some(_) => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
}

impl Picture {
    /// The pixels with as many channels as the dataset has, where that loses nothing: grey becomes red = green = blue.
    pub(crate) fn with_channels(self, channels: usize) -> Self {
        if (self.shape.channels, channels) != (1, 3) {
            return self;
        }
        let pixels = self.pixels.iter().flat_map(|value| [*value; 3]).collect();
        Self { shape: ImageShape { channels, ..self.shape }, pixels, had_alpha: self.had_alpha }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use image::{ExtendedColorType, Rgba, RgbaImage};

    use super::*;
    use crate::testing::{jpeg, png};

    const AS_IT_IS: Wanted = Wanted { channels: None, size: None, max_pixels: 1 << 20 };

    #[test]
    fn a_png_gives_its_pixels_exactly() {
        let grey: Vec<u8> = (0..12).collect();
        let picture = decode(&png(4, 3, ExtendedColorType::L8, &grey), &AS_IT_IS).unwrap();
        assert_eq!((picture.shape, picture.pixels), (ImageShape { height: 3, width: 4, channels: 1 }, grey));
        let colour: Vec<u8> = (0..36).collect();
        assert_eq!(decode(&png(4, 3, ExtendedColorType::Rgb8, &colour), &AS_IT_IS).unwrap().pixels, colour);
    }

    #[test]
    fn grey_becomes_colour_and_colour_becomes_grey_when_asked() {
        let three = Wanted { channels: Some(3), ..AS_IT_IS };
        assert_eq!(decode(&png(2, 1, ExtendedColorType::L8, &[5, 9]), &three).unwrap().pixels, [5, 5, 5, 9, 9, 9]);
        let one = Wanted { channels: Some(1), ..AS_IT_IS };
        assert_eq!(decode(&png(1, 1, ExtendedColorType::Rgb8, &[80, 80, 80]), &one).unwrap().pixels, [80]);
        let natural = decode(&png(2, 1, ExtendedColorType::L8, &[5, 9]), &AS_IT_IS).unwrap();
        assert_eq!(natural.with_channels(3).pixels, [5, 5, 5, 9, 9, 9]);
    }

    #[test]
    fn resizing_gives_the_size_and_keeps_a_flat_colour() {
        let wanted = Wanted { size: Some([5, 7]), ..AS_IT_IS };
        let picture = decode(&png(16, 16, ExtendedColorType::Rgb8, &[77; 16 * 16 * 3]), &wanted).unwrap();
        assert_eq!(picture.shape, ImageShape { height: 5, width: 7, channels: 3 });
        assert!(picture.pixels.iter().all(|value| *value == 77));
    }

    #[test]
    fn transparency_is_dropped_and_told() {
        let image = RgbaImage::from_pixel(1, 1, Rgba([1, 2, 3, 0]));
        let picture = decode(&png(1, 1, ExtendedColorType::Rgba8, image.as_raw()), &AS_IT_IS).unwrap();
        assert_eq!((picture.pixels, picture.had_alpha), (vec![1, 2, 3], true));
    }

    #[test]
    fn a_jpeg_is_decoded_close_to_what_was_encoded() {
        let flat = [120; 16 * 16 * 3];
        let picture = decode(&jpeg(16, 16, ExtendedColorType::Rgb8, &flat), &AS_IT_IS).unwrap();
        assert!(picture.pixels.iter().all(|value| value.abs_diff(120) <= 2));
        assert_eq!(decode(&jpeg(8, 8, ExtendedColorType::L8, &[9; 64]), &AS_IT_IS).unwrap().shape.channels, 1);
    }

    #[test]
    fn a_camera_that_was_held_upright_gives_an_upright_image() {
        // An APP1 segment with EXIF orientation 6 (turn by 90° clockwise), after SOI.
        let plain = jpeg(16, 8, ExtendedColorType::L8, &[50; 128]);
        let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut turned = vec![0xff, 0xd8, 0xff, 0xe1, 0, (2 + 6 + tiff.len()) as u8];
        turned.extend(b"Exif\0\0");
        turned.extend(tiff);
        turned.extend(&plain[2..]);
        let shape = decode(&turned, &AS_IT_IS).unwrap().shape;
        assert_eq!((shape.height, shape.width), (16, 8));
    }

    #[test]
    fn a_jpeg_that_is_no_jpeg_shows_its_first_bytes() {
        let error = decode(b"<html>404 not found</html>", &AS_IT_IS).unwrap_err().to_string();
        assert!(error.contains("neither JPEG nor PNG") && error.contains("an HTML page"), "{error}");
        assert!(decode(b"", &AS_IT_IS).unwrap_err().to_string().contains("the file is empty"));
    }

    #[test]
    fn a_jpeg_that_breaks_off_is_not_filled_with_grey() {
        let noise: Vec<u8> = (0..32 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let whole = jpeg(32, 32, ExtendedColorType::L8, &noise);
        for end in [whole.len() - 1, whole.len() - 2, whole.len() / 2, 30, 3] {
            assert!(decode(&whole[..end], &AS_IT_IS).is_err(), "cut at {end} of {}", whole.len());
        }
        let trailing = [&whole[..], &[0; 100]].concat();
        assert!(decode(&trailing, &AS_IT_IS).is_ok());
    }

    #[test]
    fn a_png_that_breaks_off_is_damaged() {
        let whole = png(32, 32, ExtendedColorType::L8, &(0..1024u32).map(|i| (i * 7) as u8).collect::<Vec<_>>());
        assert!(decode(&whole[..whole.len() / 2], &AS_IT_IS).is_err());
    }

    #[test]
    fn huge_dimensions_are_refused_before_memory_is_taken() {
        let mut bomb = png(1, 1, ExtendedColorType::L8, &[0]);
        bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let header_sum = crc(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&header_sum.to_be_bytes());
        let error = decode(&bomb, &AS_IT_IS).unwrap_err().to_string();
        assert!(error.contains("65535 × 65535"), "{error}");
    }

    /// CRC-32 as PNG has it, bit by bit.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { 0xedb8_8320 ^ (sum >> 1) } else { sum >> 1 })
        })
    }

    #[test]
    fn damage_of_any_kind_gives_an_error_or_an_image_and_never_a_panic() {
        let noise: Vec<u8> = (0..24 * 24 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut random = 1u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for whole in [jpeg(24, 24, ExtendedColorType::Rgb8, &noise), png(24, 24, ExtendedColorType::Rgb8, &noise)] {
            for _ in 0..2000 {
                let mut damaged = whole.clone();
                for _ in 0..=next(3) {
                    let at = next(damaged.len());
                    damaged[at] = next(256) as u8;
                }
                let _ = decode(&damaged, &AS_IT_IS);
            }
        }
    }
}
