// Convolutions and dense layers as matrix products whose factors are looked up where they lie. Maps are `[batch, height, width, channels]`,
// weights `[rows, columns, channels of a group, filters]`; a dense layer is a convolution over images of one pixel.

struct Geometry {
    int height, width, channels;
    // Of the sums, before pooling.
    int out_height, out_width, filters;
    int rows, columns, stride, dilation, top, left;
    int group_channels, group_filters;
    // Pixels of all examples together: that go in, and that come out.
    int inputs, outputs;
    // Products of a sum, and of one that leads back to the input.
    int patch, back_patch;
    Divisor by_width, by_pixels, by_out_width, by_out_pixels, by_columns, by_group_channels, by_group_filters, by_stride;
};

// A matrix as it lies in memory; places beyond its end are zero.
template <typename T, bool IS_ALONG> struct Plain {
    typedef T Number;
    static const bool ALONG = IS_ALONG;
    typedef const T *Line;
    typedef int Place;
    const T *values;
    int lines, places, pitch;

    __device__ __forceinline__ Line line(int line) const { return line < lines ? values + (u64)line * pitch : nullptr; }
    __device__ __forceinline__ Place place(int place) const { return place; }
    __device__ __forceinline__ Four<T> load(Line line, Place place) const {
        Four<T> four;
        if (line && places % 4 == 0 && pitch % 4 == 0) {
            if (place < places) return *(const Four<T> *)(line + place);
            line = nullptr;
        }
        for (int i = 0; i < 4; i++) store(four.at + i, line && place + i < places ? number(line[place + i]) : 0.0f);
        return four;
    }
};

// A pixel of one of the examples.
struct Pixel {
    int image, y, x;
};
__device__ __forceinline__ Pixel pixel_of(int pixel, Divisor by_pixels, Divisor by_width) {
    int image = over(pixel, by_pixels), rest = pixel - image * by_pixels.by, y = over(rest, by_width);
    return {image, y, rest - y * (int)by_width.by};
}

// Where a product's step along a sum is: a point of the window, how far from its corner that is, and one of the group's channels (or filters).
struct Step {
    int k, point, y, x, channel;
};
__device__ __forceinline__ Step step_of(int k, Divisor by_channels, const Geometry &at) {
    int point = over(k, by_channels), row = over(point, at.by_columns);
    return {k, point, row * at.dilation, (point - row * at.columns) * at.dilation, k - point * (int)by_channels.by};
}

// Four neighbours of a factor that finds its values by their step; at once where they lie together.
template <class Factor, class Line>
__device__ __forceinline__ Four<typename Factor::Number> neighbours(const Factor &factor, Line line, Step from, bool is_together) {
    Four<typename Factor::Number> four;
    const typename Factor::Number *first = factor.find(line, from);
    if (is_together && first) return *(const Four<typename Factor::Number> *)first;
    for (int i = 0; i < 4; i++) {
        const typename Factor::Number *value = is_together ? nullptr : i == 0 ? first : factor.find(line, factor.place(from.k + i));
        store(four.at + i, value ? number(*value) : 0.0f);
    }
    return four;
}

// The patches of images: a line each output pixel, a place each value of its window.
template <typename T, bool IS_ALONG> struct Patches {
    typedef T Number;
    static const bool ALONG = IS_ALONG;
    struct Line {
        const T *image;
        int y, x;
    };
    typedef Step Place;
    // From the group's first channel on.
    const T *images;
    const Geometry &at;

    __device__ __forceinline__ Line line(int output) const {
        if (output >= at.outputs) return {nullptr, 0, 0};
        Pixel pixel = pixel_of(output, at.by_out_pixels, at.by_out_width);
        const T *image = images + (u64)pixel.image * at.height * at.width * at.channels;
        return {image, pixel.y * at.stride - at.top, pixel.x * at.stride - at.left};
    }
    __device__ __forceinline__ Step place(int k) const { return step_of(k, at.by_group_channels, at); }
    __device__ __forceinline__ const T *find(Line line, Step step) const {
        int y = line.y + step.y, x = line.x + step.x;
        bool is_there = line.image && step.k < at.patch && (u32)y < (u32)at.height && (u32)x < (u32)at.width;
        return is_there ? line.image + (u64)(y * at.width + x) * at.channels + step.channel : nullptr;
    }
    __device__ __forceinline__ Four<T> load(Line line, Step step) const {
        return neighbours(*this, line, step, at.group_channels % 4 == 0 && at.channels % 4 == 0);
    }
};

// The gradients of the outputs that an input pixel had a part in: a line each input pixel, a place each point of a window and filter.
template <typename T> struct OutputGradients {
    typedef T Number;
    static const bool ALONG = true;
    struct Line {
        const T *image;
        int y, x;
    };
    typedef Step Place;
    // From the group's first filter on.
    const T *gradients;
    const Geometry &at;

    __device__ __forceinline__ Line line(int input) const {
        if (input >= at.inputs) return {nullptr, 0, 0};
        Pixel pixel = pixel_of(input, at.by_pixels, at.by_width);
        const T *image = gradients + (u64)pixel.image * at.out_height * at.out_width * at.filters;
        return {image, pixel.y + at.top, pixel.x + at.left};
    }
    __device__ __forceinline__ Step place(int k) const { return step_of(k, at.by_group_filters, at); }
    __device__ __forceinline__ const T *find(Line line, Step step) const {
        int y = line.y - step.y, x = line.x - step.x;
        if (!line.image || step.k >= at.back_patch || y < 0 || x < 0) return nullptr;
        int out_y = over(y, at.by_stride), out_x = over(x, at.by_stride);
        bool is_there = out_y * at.stride == y && out_x * at.stride == x && out_y < at.out_height && out_x < at.out_width;
        return is_there ? line.image + (u64)(out_y * at.out_width + out_x) * at.filters + step.channel : nullptr;
    }
    __device__ __forceinline__ Four<T> load(Line line, Step step) const {
        return neighbours(*this, line, step, at.group_filters % 4 == 0 && at.filters % 4 == 0);
    }
};

// The weights as the way back reads them: a line each channel of a group, a place each point of a window and filter.
struct TransposedWeights {
    typedef float Number;
    static const bool ALONG = true;
    typedef int Line;
    typedef Step Place;
    // From the group's first filter on.
    const float *weights;
    const Geometry &at;

    __device__ __forceinline__ Line line(int channel) const { return channel < at.group_channels ? channel : -1; }
    __device__ __forceinline__ Step place(int k) const { return step_of(k, at.by_group_filters, at); }
    __device__ __forceinline__ const float *find(Line channel, Step step) const {
        if (channel < 0 || step.k >= at.back_patch) return nullptr;
        return weights + (u64)(step.point * at.group_channels + channel) * at.filters + step.channel;
    }
    __device__ __forceinline__ Four<float> load(Line channel, Step step) const {
        return neighbours(*this, channel, step, at.group_filters % 4 == 0 && at.filters % 4 == 0);
    }
};

// A product's third axis of blocks: groups, and slices of the sums where these are long and tiles few.
struct Part {
    int group, slice, depth, end;
};
__device__ __forceinline__ Part part_of(int groups, int length, int depth) {
    int group = blockIdx.z % groups, slice = blockIdx.z / groups;
    return {group, slice, slice * length, min(depth, (slice + 1) * length)};
}

// `to`, `before`: `[outputs, filters]`. Where `slices` is given, sums go there as they are, `[slices, outputs, filters]`.
template <class Precision, typename T, typename To>
__device__ __forceinline__ void forward(const T *input, const float *weights, const float *bias, To *to, To *before, float *slices, int length,
                                        int activation, const Geometry &at) {
    Part part = part_of(at.channels / at.group_channels, length, at.patch);
    int filter = part.group * at.group_filters;
    Patches<T, true> patches = {input + part.group * at.group_channels, at};
    Plain<float, false> right = {weights + filter, at.patch, at.group_filters, at.filters};
    alignas(32) __shared__ unsigned char memory[Memory<Precision, Patches<T, true>, Plain<float, false>>::BYTES];
    if (slices) {
        slices += (u64)part.slice * at.outputs * at.filters + filter;
        Result<float> result = {slices, nullptr, nullptr, at.outputs, at.group_filters, at.filters, NONE};
        product<Precision>(patches, right, result, part.depth, part.end, memory);
    } else {
        before = before ? before + filter : nullptr;
        Result<To> result = {to + filter, before, bias + filter, at.outputs, at.group_filters, at.filters, activation};
        product<Precision>(patches, right, result, part.depth, part.end, memory);
    }
}

// `to`: `[inputs, channels]`; `slices` as before.
template <class Precision, typename T>
__device__ __forceinline__ void backward_input(const T *gradients, const float *weights, T *to, float *slices, int length, const Geometry &at) {
    Part part = part_of(at.channels / at.group_channels, length, at.back_patch);
    int channel = part.group * at.group_channels, filter = part.group * at.group_filters;
    OutputGradients<T> left = {gradients + filter, at};
    TransposedWeights right = {weights + filter, at};
    alignas(32) __shared__ unsigned char memory[Memory<Precision, OutputGradients<T>, TransposedWeights>::BYTES];
    if (slices) {
        slices += (u64)part.slice * at.inputs * at.channels + channel;
        Result<float> result = {slices, nullptr, nullptr, at.inputs, at.group_channels, at.channels, NONE};
        product<Precision>(left, right, result, part.depth, part.end, memory);
    } else {
        Result<T> result = {to + channel, nullptr, nullptr, at.inputs, at.group_channels, at.channels, NONE};
        product<Precision>(left, right, result, part.depth, part.end, memory);
    }
}

// `slices`: `[slices, patch, filters]`.
template <class Precision, typename T>
__device__ __forceinline__ void backward_weights(const T *input, const T *gradients, float *slices, int length, const Geometry &at) {
    Part part = part_of(at.channels / at.group_channels, length, at.outputs);
    int filter = part.group * at.group_filters;
    Patches<T, false> left = {input + part.group * at.group_channels, at};
    Plain<T, false> right = {gradients + filter, at.outputs, at.group_filters, at.filters};
    alignas(32) __shared__ unsigned char memory[Memory<Precision, Patches<T, false>, Plain<T, false>>::BYTES];
    slices += (u64)part.slice * at.patch * at.filters + filter;
    Result<float> result = {slices, nullptr, nullptr, at.patch, at.group_filters, at.filters, NONE};
    product<Precision>(left, right, result, part.depth, part.end, memory);
}

// The sums of slices, in order; with a bias for each of `columns`, and an activation.
template <typename T>
__device__ __forceinline__ void add_slices(const float *slices, int count, u64 length, int columns, const float *bias, int activation, T *before,
                                           T *to) {
    for EACH(i, length) {
        float sum = bias ? bias[i % columns] : 0.0f;
        for (int slice = 0; slice < count; slice++) sum += slices[slice * length + i];
        if (before) store(before + i, sum);
        store(to + i, activated(activation, sum));
    }
}
