//! An image of bytes seen another way: moved by some pixels, mirrored. Training varies its examples so, and a judgement may average over it.

/// Height, width and channels of an image of bytes.
pub type Size = (usize, usize, usize);

/// One way to see an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct View {
    /// Pixels that what is seen begins below and right of the image's corner; what lies beyond the image mirrors it.
    pub shift: (isize, isize),
    /// Whether left and right change places, after the shift.
    pub is_mirrored: bool,
}

impl View {
    /// Writes an image, `[height, width, channels]`, as it is seen.
    pub fn write(self, image: &[u8], (height, width, channels): Size, out: &mut [u8]) {
        let ((down, right), line) = (self.shift, width * channels);
        for (y, out) in out.chunks_exact_mut(line).enumerate().take(height) {
            let from = &image[reflected(y as isize + down, height) * line..][..line];
            if !self.is_mirrored && right == 0 {
                out.copy_from_slice(from);
                continue;
            }
            for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                let x = if self.is_mirrored { width - 1 - x } else { x };
                out.copy_from_slice(&from[reflected(x as isize + right, width) * channels..][..channels]);
            }
        }
    }
}

/// The place within `0..len` that a place beyond its ends mirrors, without repeating the end.
fn reflected(place: isize, len: usize) -> usize {
    let last = len as isize - 1;
    if last == 0 {
        return 0;
    }
    let place = place.rem_euclid(2 * last);
    if place > last { (2 * last - place) as usize } else { place as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(image: &[u8], size: Size, shift: (isize, isize), is_mirrored: bool) -> Vec<u8> {
        let mut out = vec![0; image.len()];
        View { shift, is_mirrored }.write(image, size, &mut out);
        out
    }

    #[test]
    fn a_mirrored_image_has_its_columns_in_the_other_order_and_its_channels_in_the_same() {
        let image: Vec<u8> = (0..12).collect();
        assert_eq!(seen(&image, (2, 3, 2), (0, 0), true), [4, 5, 2, 3, 0, 1, 10, 11, 8, 9, 6, 7]);
    }

    #[test]
    fn a_moved_image_mirrors_what_lies_within_its_border() {
        let image = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(seen(&image, (3, 3, 1), (1, 1), false), [5, 6, 5, 8, 9, 8, 5, 6, 5]);
        assert_eq!(seen(&image, (3, 3, 1), (-1, -1), false), [5, 4, 5, 2, 1, 2, 5, 4, 5]);
        assert_eq!(seen(&image, (3, 3, 1), (0, 1), true), [2, 3, 2, 5, 6, 5, 8, 9, 8], "moved, then mirrored");
        assert_eq!(seen(&[7, 8], (1, 1, 2), (1, 1), true), [7, 8], "an image of one pixel has nothing beside it");
    }
}
