//! Images of the data as pictures within the page.

use artifact::{Doing, StageError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dataset::Images;
use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};

use super::html::escape;

/// Larger images are thinned to at most this many pixels a side: a report is to look at, not to keep data in.
const SIDE: usize = 96;

/// An `img` element with the pixels in it; nothing for a corrupt image or one that is neither grey nor coloured.
pub fn picture(images: &Images, row: usize, alt: &str) -> Result<String, StageError> {
    let shape = images.shape();
    let color = match shape.channels {
        1 => image::ExtendedColorType::L8,
        3 => image::ExtendedColorType::Rgb8,
        _ => return Ok(String::new()),
    };
    let Some(pixels) = images.pixels(row) else { return Ok(String::new()) };
    let step = shape.height.max(shape.width).div_ceil(SIDE);
    let (height, width) = (shape.height.div_ceil(step), shape.width.div_ceil(step));
    let mut thinned = Vec::with_capacity(height * width * shape.channels);
    for y in (0..shape.height).step_by(step) {
        for x in (0..shape.width).step_by(step) {
            let start = (y * shape.width + x) * shape.channels;
            thinned.extend_from_slice(&pixels[start..start + shape.channels]);
        }
    }
    let mut png = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::Adaptive);
    encoder.write_image(&thinned, width as u32, height as u32, color).doing(|| format!("drawing the image `{}`", images.id(row)))?;
    Ok(format!("<img alt=\"{}\" width=\"56\" height=\"56\" src=\"data:image/png;base64,{}\">", escape(alt), STANDARD.encode(png)))
}
