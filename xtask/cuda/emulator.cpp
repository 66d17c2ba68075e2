// NVIDIA's driver and cuBLAS for tests on machines without a GPU: memory is the processor's, and kernels are compiled for the processor: dfdx's own
// sources, which run as one thread, and ours, which run as the blocks and threads they are launched with (`threads.hpp`). So the whole way from a
// network to a kernel's arguments is walked as on a GPU; how a GPU rounds, and how fast it is, is not shown. Fresh memory is poisoned, work is left
// undone until somebody waits for it, and matrices whose sides do not fit are refused as by cuBLAS. `cargo xtask cuda test --emulated` builds it.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "threads.hpp"
using std::isnan;
using std::max;
using std::min;
using std::signbit;

// -- CUDA's language, as far as those kernels speak it --------------------------------------------------------------

static const Three blockIdx = {0, 0, 0}, threadIdx = {0, 0, 0}, blockDim = {1, 1, 1}, gridDim = {1, 1, 1};
#define __device__ static
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __CUDA_ARCH__ 900
static void __syncthreads() {}

typedef _Float16 __half;
static float __half2float(__half a) { return (float)a; }
static __half __float2half(float a) { return (__half)a; }
static bool __hisnan(__half a) { return isnan((float)a); }
static __half hcos(__half a) { return (__half)cosf(a); }
static __half hsin(__half a) { return (__half)sinf(a); }
static __half hsqrt(__half a) { return (__half)sqrtf(a); }
static __half hlog(__half a) { return (__half)logf(a); }
static __half hexp(__half a) { return (__half)expf(a); }
static __half __habs(__half a) { return (__half)fabsf(a); }
static __half __hmax_nan(__half a, __half b) { return a > b ? a : b; }
static __half __hmin_nan(__half a, __half b) { return a < b ? a : b; }
template <typename T> static T atomicAdd(T *at, T value) {
    T was = *at;
    *at += value;
    return was;
}
template <typename T, typename V> static T atomicMax(T *at, V value) { return *at = max(*at, (T)value); }
template <typename T, typename V> static T atomicMin(T *at, V value) { return *at = min(*at, (T)value); }
template <typename T> static T atomicCAS(T *at, T, T value) {
    T was = *at;
    *at = value;
    return was;
}
template <typename To, typename From> static To bits(From from) {
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static unsigned __float_as_uint(float a) { return bits<unsigned>(a); }
static int __float_as_int(float a) { return bits<int>(a); }
static float __uint_as_float(unsigned a) { return bits<float>(a); }
static float __int_as_float(int a) { return bits<float>(a); }
static long long __double_as_longlong(double a) { return bits<long long>(a); }
static double __longlong_as_double(long long a) { return bits<double>(a); }
static unsigned short __half_as_ushort(__half a) { return bits<unsigned short>(a); }
static __half __ushort_as_half(unsigned short a) { return bits<__half>(a); }
#define assert(holds) if (!(holds)) abort()

// -- kernels -------------------------------------------------------------------------------------------------------

struct Kernel {
    // What one thread does, with the arguments as they are now.
    std::function<std::function<void()>(void **)> thread;
    bool in_blocks;
};
static std::map<std::string, Kernel> kernels;

template <typename... A, size_t... I>
static std::function<void()> with(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    std::tuple<std::remove_const_t<A>...> copies(*(std::remove_const_t<A> *)arguments[I]...);
    return [kernel, copies] { std::apply(kernel, copies); };
}
template <typename... A> static bool add(const char *name, void (*kernel)(A...), bool in_blocks) {
    kernels[name] = {[kernel](void **arguments) { return with(kernel, arguments, std::index_sequence_for<A...>()); }, in_blocks};
    return true;
}
#define KERNEL(name) static bool has_##name = add(#name, name, false);
#define OURS(name) static bool has_##name = add(#name, name, true);

// dfdx's: its sources, each in a namespace.

namespace badd {
#include "binary_add.cu"
KERNEL(badd_fwd_f32)
}
namespace bsub {
#include "binary_sub.cu"
KERNEL(bsub_fwd_f32)
}
namespace bmul {
#include "binary_mul.cu"
KERNEL(bmul_fwd_f32)
}
namespace bdiv {
#include "binary_div.cu"
KERNEL(bdiv_fwd_f32)
}
namespace sadd {
#include "scalar_add.cu"
KERNEL(sadd_fwd_f32)
}
namespace smul {
#include "scalar_mul.cu"
KERNEL(smul_fwd_f32)
}
namespace root {
#include "sqrt.cu"
KERNEL(sqrt_fwd_f32)
}
namespace reciprocal {
#include "recip.cu"
KERNEL(recip_fwd_f32)
}
namespace squared {
#include "square.cu"
KERNEL(square_fwd_f32)
}
namespace exponential {
#include "exp.cu"
KERNEL(exp_fwd_f32)
}
namespace logistic {
#include "sigmoid.cu"
KERNEL(sigmoid_fwd_f32)
}
namespace gelu {
#include "accurate_gelu.cu"
KERNEL(accurate_gelu_fwd_f32)
}
namespace choice {
#include "choose.cu"
KERNEL(choose_fwd_f32)
}
namespace comparison {
#include "cmp.cu"
KERNEL(gt_fwd_f32)
KERNEL(scalar_gt_fwd_f32)
KERNEL(scalar_lt_fwd_f32)
}
namespace gathering {
#include "gather.cu"
KERNEL(gather_fwd_f32)
}

// Ours. Members of theirs are `__device__` too, so that it cannot be `static`; a namespace without a name does as well.
#undef KERNEL
#undef __device__
#undef __shared__
#define __device__
#define __shared__ static thread_local
namespace ours {
namespace {
#include "kernels.cu"
#define PRODUCTS_OF(precision) OURS(forward_##precision) OURS(backward_input_##precision) OURS(backward_weights_##precision)
PRODUCTS_OF(fp32) PRODUCTS_OF(tf32) PRODUCTS_OF(bf16) OURS(forward_bf16_to_fp32)
#define LAYERS_OF(memory)                                                                                                                         \
    OURS(add_slices_##memory) OURS(pool_##memory) OURS(pool_back_##memory) OURS(activation_back_##memory) OURS(join_##memory)                     \
    OURS(dropout_##memory) OURS(sum_##memory) OURS(moments_##memory) OURS(norm_slopes_##memory) OURS(norm_statistics_##memory)                    \
    OURS(norm_##memory) OURS(norm_back_##memory) OURS(loss_##memory) OURS(see_##memory) OURS(take_##memory)
LAYERS_OF(fp32) LAYERS_OF(bf16)
OURS(all_slices_fp32) OURS(running_inverse) OURS(to_fp32) OURS(labels_of) OURS(adam_step) OURS(sgd_step) OURS(muon_momentum) OURS(blend_with)
OURS(sum_of_squares) OURS(normalise_to) OURS(clip_by)
}
}

// -- the default stream --------------------------------------------------------------------------------------------

// What is asked of it is done as late as may be: when somebody waits for it. Whatever is asked of another stream is done at once. So what one writes
// while the other still reads comes to light. It belongs to the thread that asks.
typedef std::deque<std::function<void()>> Stream;
static std::map<std::thread::id, Stream> streams;
static std::mutex finding;

static Stream &stream_here() {
    std::lock_guard<std::mutex> alone(finding);
    return streams[std::this_thread::get_id()];
}
static void settle() {
    for (Stream &stream = stream_here(); !stream.empty(); stream.pop_front()) stream.front()();
}
static int later(void *stream, std::function<void()> work) {
    if (stream) return work(), 0;
    return stream_here().push_back(std::move(work)), 0;
}

// -- the driver ----------------------------------------------------------------------------------------------------

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_SUPPORTED = 801 };
#define DRIVER extern "C" int
const size_t MEMORY = 1 << 30;

DRIVER cuInit(unsigned) { return OK; }
DRIVER cuDeviceGetCount(int *count) { return *count = 1, OK; }
DRIVER cuDeviceGet(int *device, int) { return *device = 0, OK; }
DRIVER cuDeviceGetName(char *name, int size, int) { return strncpy(name, "an emulated GPU", size), OK; }
DRIVER cuDeviceGetAttribute(int *value, int, int) { return *value = 1, OK; }
DRIVER cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = MEMORY, OK; }
DRIVER cuDevicePrimaryCtxRetain(void **context, int) { return *context = &kernels, OK; }
DRIVER cuDevicePrimaryCtxRelease_v2(int) { return OK; }
DRIVER cuCtxSetCurrent(void *) { return OK; }
DRIVER cuCtxGetCurrent(void **context) { return *context = &kernels, OK; }
typedef std::chrono::steady_clock Clock;
DRIVER cuEventCreate(void **event, unsigned) { return *event = new Clock::time_point, OK; }
DRIVER cuEventRecord(Clock::time_point *event, void *stream) {
    return later(stream, [=] { *event = Clock::now(); });
}
DRIVER cuEventSynchronize(void *) { return settle(), OK; }
DRIVER cuEventDestroy_v2(Clock::time_point *event) { return settle(), delete event, OK; }
DRIVER cuEventElapsedTime(float *milliseconds, Clock::time_point *start, Clock::time_point *end) {
    return *milliseconds = std::chrono::duration<float, std::milli>(*end - *start).count(), OK;
}
DRIVER cuStreamCreate(void **stream, unsigned) { return *stream = &kernels, OK; }
DRIVER cuStreamDestroy_v2(void *) { return OK; }
DRIVER cuStreamSynchronize(void *stream) { return stream ? OK : (settle(), OK); }
DRIVER cuStreamWaitEvent(void *stream, void *, unsigned) { return stream ? (settle(), OK) : OK; }
DRIVER cuGetErrorName(int, const char **text) { return *text = "EMULATED", OK; }
DRIVER cuGetErrorString(int, const char **text) { return *text = "the emulated driver refuses", OK; }

DRIVER cuMemAllocAsync(void **memory, size_t bytes, void *) {
    if (bytes > MEMORY) return OUT_OF_MEMORY;
    *memory = aligned_alloc(256, bytes / 256 * 256 + 256); // As aligned as the driver's.
    memset(*memory, 0xff, bytes); // A NaN, and an index beyond all bounds.
    return OK;
}
DRIVER cuMemAlloc_v2(void **memory, size_t bytes) { return bytes == 0 ? INVALID_VALUE : cuMemAllocAsync(memory, bytes, 0); }
DRIVER cuMemAllocHost_v2(void **memory, size_t bytes) { return cuMemAllocAsync(memory, bytes, 0); }
DRIVER cuMemFreeHost(void *memory) { return free(memory), OK; }
DRIVER cuMemFreeAsync(void *memory, void *stream) {
    return later(stream, [=] { free(memory); });
}
DRIVER cuMemFree_v2(void *memory) { return settle(), free(memory), OK; }
DRIVER cuMemGetInfo_v2(size_t *left, size_t *total) { return *left = *total = MEMORY, OK; }
DRIVER cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    std::string staged((const char *)from, bytes); // As the driver does with memory that is not pinned.
    return later(stream, [=] { memcpy(to, staged.data(), bytes); });
}
DRIVER cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) { return settle(), memcpy(to, from, bytes), OK; }
DRIVER cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    return later(stream, [=] { memcpy(to, from, bytes); });
}
DRIVER cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) { return settle(), memcpy(to, from, bytes), OK; }
DRIVER cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    return later(stream, [=] { memcpy(to, from, bytes); });
}
DRIVER cuMemcpyDtoD_v2(void *to, const void *from, size_t bytes) { return settle(), memcpy(to, from, bytes), OK; }
DRIVER cuMemsetD8Async(void *memory, unsigned char value, size_t bytes, void *stream) {
    return later(stream, [=] { memset(memory, value, bytes); });
}
DRIVER cuMemsetD8_v2(void *memory, unsigned char value, size_t bytes) { return settle(), memset(memory, value, bytes), OK; }
DRIVER cuImportExternalMemory(void **, const void *) { return NOT_SUPPORTED; }
DRIVER cuExternalMemoryGetMappedBuffer(void **, void *, const void *) { return NOT_SUPPORTED; }
DRIVER cuDestroyExternalMemory(void *) { return NOT_SUPPORTED; }

DRIVER cuModuleLoad(void **, const char *) { return NOT_SUPPORTED; }
DRIVER cuModuleLoadData(void **module, const void *) { return *module = &kernels, OK; }
DRIVER cuModuleUnload(void *) { return OK; }
// A kernel that is not known here has a name too; launching it is refused.
DRIVER cuModuleGetFunction(void **function, void *, const char *name) { return *function = strdup(name), OK; }
DRIVER cuLaunchKernel(const char *name, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y, unsigned z, unsigned shared,
                      void *stream, void **arguments, void **) {
    if (!grid_x || !grid_y || !grid_z || grid_x > INT32_MAX || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (!x || !y || !z || x > 1024 || y > 1024 || z > 64 || x * y * z > 1024) return INVALID_VALUE;
    auto found = kernels.find(name);
    if (found == kernels.end()) return fprintf(stderr, "the emulated GPU has no kernel %s\n", name), NOT_FOUND;
    const Kernel &kernel = found->second;
    std::function<void()> thread = kernel.thread(arguments);
    if (!kernel.in_blocks) return later(stream, thread);
    if (shared > 0) return NOT_SUPPORTED; // Ours declare what they share.
    return later(stream, [=] { fibers::launch(name, {grid_x, grid_y, grid_z}, {x, y, z}, thread); });
}

// -- cuBLAS: column after column -----------------------------------------------------------------------------------

enum { BLAS_INVALID_VALUE = 7, BLAS_NOT_SUPPORTED = 15 };

DRIVER cublasCreate_v2(void **handle) { return *handle = &kernels, OK; }
DRIVER cublasDestroy_v2(void *) { return OK; }
DRIVER cublasSetStream_v2(void *, void *) { return OK; }
DRIVER cublasSgemm_v2(void *, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda, const float *b, int ldb,
                      const float *beta, float *c, int ldc) {
    if (lda < max(1, ta ? k : m) || ldb < max(1, tb ? n : k) || ldc < max(1, m)) return BLAS_INVALID_VALUE;
    const float times = *alpha, keep = *beta;
    return later(0, [=] {
        for (int j = 0; j < n; j++) {
            for (int i = 0; i < m; i++) {
                double sum = 0;
                for (int l = 0; l < k; l++) sum += (double)a[ta ? i * (long)lda + l : l * (long)lda + i] * b[tb ? l * (long)ldb + j : j * (long)ldb + l];
                float *out = c + j * (long)ldc + i;
                *out = times * (float)sum + (keep == 0 ? 0 : keep * *out);
            }
        }
    });
}
DRIVER cublasSgemmStridedBatched(void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda, long long sa,
                                 const float *b, int ldb, long long sb, const float *beta, float *c, int ldc, long long sc, int batch) {
    for (int i = 0; i < batch; i++) {
        int done = cublasSgemm_v2(handle, ta, tb, m, n, k, alpha, a + i * sa, lda, b + i * sb, ldb, beta, c + i * sc, ldc);
        if (done != OK) return done;
    }
    return OK;
}
DRIVER cublasDgemm_v2() { return BLAS_NOT_SUPPORTED; }
DRIVER cublasDgemmStridedBatched() { return BLAS_NOT_SUPPORTED; }
DRIVER cublasSgemv_v2() { return BLAS_NOT_SUPPORTED; }
DRIVER cublasDgemv_v2() { return BLAS_NOT_SUPPORTED; }
DRIVER cublasGemmEx() { return BLAS_NOT_SUPPORTED; }
DRIVER cublasGemmStridedBatchedEx() { return BLAS_NOT_SUPPORTED; }
