// Episteme's kernels for NVIDIA GPUs: the whole of a step of training, and of judging. `src/fused` launches them; `cargo xtask cuda build` compiles
// them. Names end in how products are taken (`fp32`; on tensor cores `tf32`, `bf16`) or in what lies in memory (`fp32`, `bf16`).

#include "numbers.cuh"
#include "tile.cuh"
#include "conv.cuh"
#include "layers.cuh"
#include "learn.cuh"
#include "images.cuh"

#define KERNEL extern "C" __global__ void

#define PRODUCTS(name, Precision, T)                                                                                                              \
    KERNEL __launch_bounds__(THREADS) forward_##name(const T *input, const float *weights, const float *bias, T *to, T *before, float *slices,    \
                                                     int length, int activation, Geometry at) {                                                   \
        forward<Precision>(input, weights, bias, to, before, slices, length, activation, at);                                                     \
    }                                                                                                                                             \
    KERNEL __launch_bounds__(THREADS)                                                                                                             \
        backward_input_##name(const T *gradients, const float *weights, T *to, float *slices, int length, Geometry at) {                          \
        backward_input<Precision>(gradients, weights, to, slices, length, at);                                                                    \
    }                                                                                                                                             \
    KERNEL __launch_bounds__(THREADS) backward_weights_##name(const T *input, const T *gradients, float *slices, int length, Geometry at) {       \
        backward_weights<Precision>(input, gradients, slices, length, at);                                                                        \
    }

PRODUCTS(fp32, Fp32, float)
PRODUCTS(tf32, Tf32, float)
PRODUCTS(bf16, Bf16, bf16)

// Logits are not rounded to bf16.
KERNEL __launch_bounds__(THREADS) forward_bf16_to_fp32(const bf16 *input, const float *weights, const float *bias, float *to, float *before,
                                                       float *slices, int length, int activation, Geometry at) {
    forward<Bf16>(input, weights, bias, to, before, slices, length, activation, at);
}

#define LAYERS(name, T)                                                                                                                           \
    KERNEL add_slices_##name(const float *slices, int count, u64 length, int columns, const float *bias, int activation, T *before, T *to) {      \
        add_slices(slices, count, length, columns, bias, activation, before, to);                                                                 \
    }                                                                                                                                             \
    KERNEL pool_##name(const T *input, T *to, u32 length, int activation, Windows at) { pool(input, to, length, activation, at); }                \
    KERNEL pool_back_##name(const T *input, const T *gradient, T *to, u32 length, Windows at) { pool_back(input, gradient, to, length, at); }     \
    KERNEL activation_back_##name(int activation, const T *kept, const T *gradient, T *to, u64 length) {                                          \
        activation_back(activation, kept, gradient, to, length);                                                                                  \
    }                                                                                                                                             \
    KERNEL join_##name(const T *one, const T *other, int activation, T *before, T *to, u64 length) {                                              \
        join(one, other, activation, before, to, length);                                                                                         \
    }                                                                                                                                             \
    KERNEL dropout_##name(const T *input, u64 key, u64 threshold, float scale, T *to, u64 length) {                                               \
        dropout(input, key, threshold, scale, to, length);                                                                                        \
    }                                                                                                                                             \
    KERNEL sum_##name(const T *values, u32 pixels, int channels, u32 slice, float *sums) {                                                        \
        channel_sums(OnlySum<T>{values}, pixels, channels, slice, sums);                                                                          \
    }                                                                                                                                             \
    KERNEL moments_##name(const T *values, u32 pixels, int channels, u32 slice, float *sums) {                                                    \
        channel_sums(Moments<T>{values}, pixels, channels, slice, sums);                                                                          \
    }                                                                                                                                             \
    KERNEL norm_slopes_##name(const T *values, const T *gradient, Norm norm, u32 pixels, int channels, u32 slice, float *sums) {                  \
        channel_sums(NormSlopes<T>{values, gradient, norm}, pixels, channels, slice, sums);                                                       \
    }                                                                                                                                             \
    KERNEL norm_statistics_##name(const float *sums, int slices, const T *values, u32 pixels, float epsilon, int channels, float *mean,           \
                                  float *inverse, float *variance) {                                                                              \
        norm_statistics(sums, slices, values, pixels, epsilon, channels, mean, inverse, variance);                                                \
    }                                                                                                                                             \
    KERNEL norm_##name(const T *input, Norm at, int channels, T *to, u64 length) { norm(input, at, channels, to, length); }                       \
    KERNEL norm_back_##name(const T *input, const T *gradient, Norm norm, const float *shift_gradient, const float *scale_gradient, u32 pixels,   \
                            int channels, T *to, u64 length) {                                                                                    \
        norm_back(input, gradient, norm, shift_gradient, scale_gradient, pixels, channels, to, length);                                           \
    }                                                                                                                                             \
    KERNEL loss_##name(const float *logits, const u32 *labels, const float *weights, float smoothing, float share, int batch, int classes,        \
                       T *gradient, double *report) {                                                                                             \
        loss(logits, labels, weights, smoothing, share, batch, classes, gradient, report);                                                        \
    }                                                                                                                                             \
    KERNEL see_##name(const unsigned char *set, const Sight *sights, const unsigned char *fill, const float *scaling, Images at, T *to,           \
                      u64 length) {                                                                                                               \
        see(set, sights, fill, scaling, at, to, length);                                                                                     \
    }                                                                                                                                             \
    KERNEL take_##name(const float *set, const Sight *sights, int features, T *to, u64 length) { take(set, sights, features, to, length); }

LAYERS(fp32, float)
LAYERS(bf16, bf16)

KERNEL all_slices_fp32(const float *sums, int slices, int channels, int which, float *to) {
    for EACH(i, channels) to[i] = (float)all_slices(sums, slices, channels, which, i);
}
KERNEL running_inverse(const float *variance, float epsilon, float *inverse, u64 length) {
    for EACH(i, length) inverse[i] = 1.0f / sqrtf(variance[i] + epsilon);
}
KERNEL to_fp32(const bf16 *from, float *to, u64 length) {
    for EACH(i, length) to[i] = number(from[i]);
}
KERNEL labels_of(const u32 *set, const Sight *sights, u32 *to, u64 length) {
    for EACH(i, length) to[i] = set[sights[i].row];
}

KERNEL adam_step(float *weights, const float *gradient, float *first, float *second, u64 length, float rate, float beta1, float beta2,
                 float epsilon, float decay, float unbias1, float unbias2, const float *clip) {
    adam(weights, gradient, first, second, length, rate, beta1, beta2, epsilon, decay, unbias1, unbias2, clip);
}
KERNEL sgd_step(float *weights, const float *gradient, float *velocity, u64 length, float rate, float momentum, int nesterov, float decay,
                const float *clip) {
    sgd(weights, gradient, velocity, length, rate, momentum, nesterov, decay, clip);
}
KERNEL muon_momentum(const float *gradient, float *velocity, float *direction, u64 length, float momentum, int nesterov, const float *clip) {
    muon_direction(gradient, velocity, direction, length, momentum, nesterov, clip);
}
KERNEL blend_with(const float *one, float *other, float a, float b, u64 length) { blend(one, other, a, b, length); }
KERNEL __launch_bounds__(LOSS_THREADS) sum_of_squares(const float *values, u64 length, double *sum) { square_sum(values, length, sum); }
KERNEL normalise_to(float *values, const double *sum, float norm, u64 length) { normalise(values, sum, norm, length); }
KERNEL clip_by(const double *sums, int count, float largest, float *factor) { clip_factor(sums, count, largest, factor); }
