// Numbers in memory, activations, and indices.

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <mma.h>
#endif

typedef __nv_bfloat16 bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Neighbours in memory, moved at once.
template <typename T> struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void store(float *to, float x) { *to = x; }
__device__ __forceinline__ void store(bf16 *to, float x) { *to = __float2bfloat16(x); }

// A divisor of numbers below 2^31, as a product (Granlund and Montgomery 1994, with a multiplier of 33 bits whose highest is left out).
struct Divisor {
    u32 by, multiplier, shift;
};
__device__ __forceinline__ int over(int n, Divisor divisor) { return (int)((__umulhi((u32)n, divisor.multiplier) + (u32)n) >> divisor.shift); }

// Goes through `count` numbers with all threads of a grid of one axis.
#define EACH(i, count) (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (count); i += gridDim.x * (u64)blockDim.x)

enum Activation { NONE, RELU, GELU, SILU };

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

__device__ __forceinline__ float activated(int activation, float x) {
    switch (activation) {
    case RELU: return 0.0f > x ? 0.0f : x; // So that a NaN stays one: a training that comes apart must show.
    case GELU: return x * normal_cdf(x);
    case SILU: return x / (1.0f + expf(-x));
    default: return x;
    }
}

// The derivative; `kept` is the result of ReLU, and what went in of the others.
__device__ __forceinline__ float slope(int activation, float kept) {
    switch (activation) {
    case RELU: return kept > 0.0f ? 1.0f : 0.0f;
    case GELU: return normal_cdf(kept) + kept * 0.39894228f * expf(-0.5f * kept * kept);
    case SILU: {
        float share = 1.0f / (1.0f + expf(-kept));
        return share * (1.0f + kept * (1.0f - share));
    }
    default: return 1.0f;
    }
}
