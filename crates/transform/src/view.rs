//! An image of bytes seen another way: moved by some pixels, mirrored, smaller. Training varies its examples so, and a judgement may average over it.

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

/// Writes an image in fewer rows and columns: each pixel becomes the mean of the area that it covers, rounded half up.
pub fn shrink(image: &[u8], (height, width, channels): Size, (rows, columns): (usize, usize), out: &mut [u8]) {
    let area = (height * width) as u64;
    for (y, out) in out.chunks_exact_mut(columns * channels).enumerate().take(rows) {
        for (x, out) in out.chunks_exact_mut(channels).enumerate() {
            for (channel, out) in out.iter_mut().enumerate() {
                let sum_of_row = |from: usize| {
                    let value = |at: usize| u64::from(image[(from * width + at) * channels + channel]);
                    covered(x, width, columns).map(|(at, share)| share * value(at)).sum::<u64>()
                };
                let sum: u64 = covered(y, height, rows).map(|(from, share)| share * sum_of_row(from)).sum();
                *out = ((sum + area / 2) / area) as u8;
            }
        }
    }
}

/// Which of `len` places one of `parts` equal parts covers, and how much of each: a whole place counts `parts`, a whole part `len`.
fn covered(part: usize, len: usize, parts: usize) -> impl Iterator<Item = (usize, u64)> {
    let (start, end) = (part * len, (part + 1) * len);
    (start / parts..end.div_ceil(parts)).map(move |at| (at, (end.min((at + 1) * parts) - start.max(at * parts)) as u64))
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

    fn smaller(image: &[u8], size: Size, to: (usize, usize)) -> Vec<u8> {
        let mut out = vec![0; to.0 * to.1 * size.2];
        shrink(image, size, to, &mut out);
        out
    }

    #[test]
    fn a_pixel_of_a_smaller_image_is_the_mean_of_what_it_covers() {
        assert_eq!(smaller(&[1, 3, 10, 20, 5, 7, 30, 41], (2, 4, 1), (1, 2)), [4, 25]);
        assert_eq!(smaller(&[0, 90, 255], (1, 3, 1), (1, 2)), [30, 200], "a pixel and half of the next");
        assert_eq!(smaller(&[0, 200, 100, 50], (1, 2, 2), (1, 1)), [50, 125], "each channel by itself");
        let image: Vec<u8> = (0..60).collect();
        assert_eq!(smaller(&image, (4, 5, 3), (4, 5)), image, "as large as it is");
        assert_eq!(smaller(&[77; 31 * 29 * 3], (31, 29, 3), (20, 13)), [77; 20 * 13 * 3], "the shares add up to one");
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
