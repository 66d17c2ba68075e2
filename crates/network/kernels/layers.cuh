// What is no product: pooling, batch norms, activations, dropout, sums of two ways, the loss.

struct Windows {
    int height, width, channels, out_height, out_width, rows, columns, stride, is_mean;
};

// `to`: `[batch, out_height, out_width, channels]`.
template <typename T> __device__ __forceinline__ void pool(const T *input, T *to, u32 length, int activation, Windows at) {
    for EACH(i, length) {
        u32 pixel = (u32)i / at.channels, channel = (u32)i % at.channels, x = pixel % at.out_width, line = pixel / at.out_width;
        u32 y = line % at.out_height, image = line / at.out_height;
        const T *corner = input + ((u64)(image * at.height + y * at.stride) * at.width + x * at.stride) * at.channels + channel;
        float found = number(*corner);
        for (int place = 1; place < at.rows * at.columns; place++) {
            float value = number(corner[(u64)(place / at.columns * at.width + place % at.columns) * at.channels]);
            found = at.is_mean ? found + value : value > found ? value : found;
        }
        if (at.is_mean) found /= at.rows * at.columns;
        store(to + i, activated(activation, found));
    }
}

// The gradient of the input, whose pixels look at each window that they are in; of equal maxima the first has it.
template <typename T> __device__ __forceinline__ void pool_back(const T *input, const T *gradient, T *to, u32 length, Windows at) {
    for EACH(i, length) {
        u32 pixel = (u32)i / at.channels, channel = (u32)i % at.channels;
        int x = pixel % at.width, line = pixel / at.width, y = line % at.height;
        u32 image = line / at.height;
        const T *values = input + (u64)image * at.height * at.width * at.channels + channel;
        const T *gradients = gradient + (u64)image * at.out_height * at.out_width * at.channels + channel;
        float sum = 0.0f;
        int first_y = y < at.rows ? 0 : (y - at.rows) / at.stride + 1, first_x = x < at.columns ? 0 : (x - at.columns) / at.stride + 1;
        for (int out_y = first_y; out_y < at.out_height && out_y * at.stride <= y; out_y++) {
            for (int out_x = first_x; out_x < at.out_width && out_x * at.stride <= x; out_x++) {
                float share = number(gradients[(u64)(out_y * at.out_width + out_x) * at.channels]);
                if (at.is_mean) {
                    sum += share / (at.rows * at.columns);
                    continue;
                }
                const T *corner = values + (u64)(out_y * at.stride * at.width + out_x * at.stride) * at.channels;
                float best = number(*corner);
                int winner = 0, own = (y - out_y * at.stride) * at.columns + x - out_x * at.stride;
                for (int place = 1; place < at.rows * at.columns; place++) {
                    float value = number(corner[(u64)(place / at.columns * at.width + place % at.columns) * at.channels]);
                    if (value > best) {
                        best = value;
                        winner = place;
                    }
                }
                if (winner == own) sum += share;
            }
        }
        store(to + i, sum);
    }
}

template <typename T> __device__ __forceinline__ void activation_back(int activation, const T *kept, const T *gradient, T *to, u64 length) {
    for EACH(i, length) store(to + i, number(gradient[i]) * slope(activation, number(kept[i])));
}

// The sum of two ways; `before` may be null.
template <typename T>
__device__ __forceinline__ void join(const T *one, const T *other, int activation, T *before, T *to, u64 length) {
    for EACH(i, length) {
        float sum = number(one[i]) + number(other[i]);
        if (before) store(before + i, sum);
        store(to + i, activated(activation, sum));
    }
}

// As `Dropout::mask` draws it (SplitMix64; Steele et al. 2014).
__device__ __forceinline__ u64 mixed(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
template <typename T> __device__ __forceinline__ void dropout(const T *input, u64 key, u64 threshold, float scale, T *to, u64 length) {
    for EACH(i, length) {
        bool is_dropped = mixed(key + i * 0x9E3779B97F4A7C15ull) < threshold;
        store(to + i, is_dropped ? 0.0f : number(input[i]) * scale);
    }
}

// -- sums over the pixels of each channel: two at once, a slice of the pixels a block, `[slices, 2, channels]` ----------------------------------

static const int LANES = 32, DEEP = 8;

template <class Terms> __device__ __forceinline__ void channel_sums(Terms terms, u32 pixels, int channels, u32 slice, float *sums) {
    __shared__ float shared[2][DEEP][LANES];
    int channel = blockIdx.x * LANES + threadIdx.x;
    u32 first = blockIdx.y * slice, end = min(pixels, first + slice);
    float one = 0.0f, other = 0.0f;
    if (channel < channels) {
        for (u32 pixel = first + threadIdx.y; pixel < end; pixel += DEEP) terms.add((u64)pixel * channels + channel, channel, one, other);
    }
    shared[0][threadIdx.y][threadIdx.x] = one;
    shared[1][threadIdx.y][threadIdx.x] = other;
    __syncthreads();
    if (threadIdx.y < 2 && channel < channels) {
        float sum = 0.0f;
        for (int i = 0; i < DEEP; i++) sum += shared[threadIdx.y][i][threadIdx.x];
        sums[((u64)blockIdx.y * 2 + threadIdx.y) * channels + channel] = sum;
    }
}

template <typename T> struct OnlySum {
    const T *values;
    __device__ __forceinline__ void add(u64 i, int, float &one, float &) const { one += number(values[i]); }
};

// About the first pixel, not about zero: there, squares of a far-off mean would swallow the variance.
template <typename T> struct Moments {
    const T *values;
    __device__ __forceinline__ void add(u64 i, int channel, float &one, float &other) const {
        float apart = number(values[i]) - number(values[channel]);
        one += apart;
        other += apart * apart;
    }
};

// A batch norm's numbers for each channel: mean, what a deviation is multiplied with, unbiased variance.
struct Norm {
    const float *mean, *inverse, *scale, *shift;
    int activation;
};

template <typename T> struct NormSlopes {
    const T *values, *gradient;
    Norm norm;
    __device__ __forceinline__ void add(u64 i, int channel, float &one, float &other) const {
        float deviation = (number(values[i]) - norm.mean[channel]) * norm.inverse[channel];
        float g = number(gradient[i]);
        if (norm.activation == RELU) g = norm.scale[channel] * deviation + norm.shift[channel] > 0.0f ? g : 0.0f;
        if (norm.activation > RELU) g *= slope(norm.activation, norm.scale[channel] * deviation + norm.shift[channel]);
        one += g;
        other += g * deviation;
    }
};

__device__ __forceinline__ double all_slices(const float *sums, int slices, int channels, int which, int channel) {
    double sum = 0.0;
    for (int slice = 0; slice < slices; slice++) sum += sums[((u64)slice * 2 + which) * channels + channel];
    return sum;
}

template <typename T>
__device__ __forceinline__ void norm_statistics(const float *sums, int slices, const T *values, u32 pixels, float epsilon, int channels,
                                                float *mean, float *inverse, float *variance) {
    for EACH(i, channels) {
        double one = all_slices(sums, slices, channels, 0, i) / pixels, other = all_slices(sums, slices, channels, 1, i) / pixels;
        double biased = max(0.0, other - one * one);
        mean[i] = (float)(number(values[i]) + one);
        inverse[i] = (float)(1.0 / sqrt(biased + epsilon));
        variance[i] = (float)(biased * pixels / (pixels > 1 ? pixels - 1 : 1));
    }
}

template <typename T> __device__ __forceinline__ void norm(const T *input, Norm norm, int channels, T *to, u64 length) {
    for EACH(i, length) {
        int channel = (int)(i % channels);
        float deviation = (number(input[i]) - norm.mean[channel]) * norm.inverse[channel];
        store(to + i, activated(norm.activation, norm.scale[channel] * deviation + norm.shift[channel]));
    }
}

// The gradients of scale and shift, and the input's: `scale · inverse · (g − mean(g) − deviation · mean(g · deviation))`.
template <typename T>
__device__ __forceinline__ void norm_back(const T *input, const T *gradient, Norm norm, const float *shift_gradient, const float *scale_gradient,
                                          u32 pixels, int channels, T *to, u64 length) {
    for EACH(i, length) {
        int channel = (int)(i % channels);
        float deviation = (number(input[i]) - norm.mean[channel]) * norm.inverse[channel];
        float g = number(gradient[i]);
        if (norm.activation != NONE) {
            float after = norm.scale[channel] * deviation + norm.shift[channel];
            g *= slope(norm.activation, after);
        }
        float mean = (shift_gradient[channel] + deviation * scale_gradient[channel]) / pixels;
        store(to + i, norm.scale[channel] * norm.inverse[channel] * (g - mean));
    }
}

// -- the loss ------------------------------------------------------------------------------------------------------------------------------------

static const int LOSS_THREADS = 256;

// Adds up one number of each thread, in their order.
__device__ __forceinline__ double total(double own, double *shared) {
    shared[threadIdx.x] = own;
    __syncthreads();
    for (int half = LOSS_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    double sum = shared[0];
    __syncthreads();
    return sum;
}

// Softmax and cross-entropy of a batch, by one block. `weights`, of each class, may be null. Adds to `report` the loss times the batch, and how
// often the largest logit is the label's; the gradient is multiplied by `share`.
template <typename T>
__device__ __forceinline__ void loss(const float *logits, const u32 *labels, const float *weights, float smoothing, float share, int batch,
                                     int classes, T *gradient, double *report) {
    __shared__ double shared[LOSS_THREADS];
    double own = 0.0;
    for (int i = threadIdx.x; i < batch; i += LOSS_THREADS) own += weights ? weights[labels[i]] : 1.0f;
    double all = total(own, shared), lost = 0.0, correct = 0.0;
    for (int i = threadIdx.x; i < batch; i += LOSS_THREADS) {
        const float *row = logits + (u64)i * classes;
        int best = 0;
        for (int c = 1; c < classes; c++)
            if (row[c] > row[best]) best = c;
        double sum = 0.0;
        for (int c = 0; c < classes; c++) sum += exp((double)(row[c] - row[best]));
        float log_sum = (float)log(sum);
        u32 label = labels[i];
        double weight = (weights ? weights[label] : 1.0f) / all;
        correct += best == label;
        for (int c = 0; c < classes; c++) {
            float target = smoothing / classes + (c == label ? 1.0f - smoothing : 0.0f), log_share = row[c] - row[best] - log_sum;
            if (target > 0.0f) lost -= weight * (double)(target * log_share);
            if (gradient) store(gradient + (u64)i * classes + c, share * (float)weight * (expf(log_share) - target));
        }
    }
    lost = total(lost, shared);
    correct = total(correct, shared);
    if (threadIdx.x == 0) {
        report[0] += lost * batch;
        report[1] += correct;
    }
}
