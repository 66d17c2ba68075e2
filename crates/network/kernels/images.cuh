// Examples of a set that lies on the GPU, as a step sees them.

// Which example, and how: `View` and `Augmentation` on the processor. Where no list of them is given, all are seen as they are.
struct Sight {
    int row, down, right, is_mirrored, cut_y, cut_x;
};

struct Images {
    int height, width, channels, out_height, out_width;
    // Of the square that is cut out; 0 where nothing is.
    int cutout;
};

__device__ __forceinline__ int reflected(int place, int length) {
    int last = length - 1;
    if (last == 0) return 0;
    place %= 2 * last;
    if (place < 0) place += 2 * last;
    return place > last ? 2 * last - place : place;
}

// A byte of an image as it is seen before it is made smaller.
__device__ __forceinline__ u32 seen(const unsigned char *image, const unsigned char *fill, Images at, Sight sight, int y, int x, int channel) {
    if (at.cutout > 0) {
        int top = y - (sight.cut_y - at.cutout / 2), left = x - (sight.cut_x - at.cutout / 2);
        if (top >= 0 && top < at.cutout && left >= 0 && left < at.cutout) return fill[channel];
    }
    int from_y = reflected(y + sight.down, at.height), from_x = reflected((sight.is_mirrored ? at.width - 1 - x : x) + sight.right, at.width);
    return image[((u64)from_y * at.width + from_x) * at.channels + channel];
}

// Scaled pixels, `[batch, out_height, out_width, channels]`, by `scaling`, a scale and then a shift for each channel; each is the mean of the area that it covers, rounded half up.
template <typename T>
__device__ __forceinline__ void see(const unsigned char *set, const Sight *sights, const unsigned char *fill, const float *scaling,
                                    Images at, T *to, u64 length) {
    for EACH(i, length) {
        int channel = (int)(i % at.channels);
        u64 pixel = i / at.channels;
        int x = (int)(pixel % at.out_width), y = (int)(pixel / at.out_width % at.out_height);
        int example = (int)(pixel / at.out_width / at.out_height);
        Sight sight = sights ? sights[example] : Sight{example, 0, 0, 0, 0, 0};
        const unsigned char *image = set + (u64)sight.row * at.height * at.width * at.channels;
        u32 byte;
        if (at.out_height == at.height && at.out_width == at.width) {
            byte = seen(image, fill, at, sight, y, x, channel);
        } else {
            u64 sum = 0, area = (u64)at.height * at.width;
            int top = y * at.height, bottom = top + at.height, left = x * at.width, right = left + at.width;
            for (int from_y = top / at.out_height; from_y * at.out_height < bottom; from_y++) {
                u64 down = min(bottom, (from_y + 1) * at.out_height) - max(top, from_y * at.out_height);
                for (int from_x = left / at.out_width; from_x * at.out_width < right; from_x++) {
                    u64 across = min(right, (from_x + 1) * at.out_width) - max(left, from_x * at.out_width);
                    sum += down * across * seen(image, fill, at, sight, from_y, from_x, channel);
                }
            }
            byte = (u32)((sum + area / 2) / area);
        }
        store(to + i, fmaf((float)byte, scaling[channel], scaling[at.channels + channel]));
    }
}

// Rows of a table of numbers.
template <typename T> __device__ __forceinline__ void take(const float *set, const Sight *sights, int features, T *to, u64 length) {
    for EACH(i, length) store(to + i, set[(sights ? (u64)sights[i / features].row : i / features) * features + i % features]);
}
