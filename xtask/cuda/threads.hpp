// What the emulated GPU (`emulator.cpp`) needs for kernels of our own, which share memory and wait for each other: a block runs as fibers, one a
// thread, on one thread of the processor. A fiber runs until its next barrier; whose turn it is goes up the block and then, in the next phase, down
// again (every second block starts downwards), so that a kernel which lacks a barrier reads what is not written yet and gives a wrong result.
// `ours` is CUDA's language as those kernels speak it: NVIDIA, "CUDA C++ Programming Guide", 7 (C++ language extensions) and 7.24 (warp matrices).

#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <link.h>
#include <mutex>
#include <sys/mman.h>
#include <type_traits>
#ifndef __x86_64__
#include <ucontext.h>
#endif

struct Three {
    unsigned x, y, z;
};

namespace ours {
static Three threadIdx, blockIdx, blockDim, gridDim; // They hide those of dfdx's kernels, which are constant.
}

// -- threads that take turns ---------------------------------------------------------------------------------------

namespace fibers {

#ifdef __x86_64__
typedef void *Context; // Its stack's top, where the registers lie that a call has to preserve (System V ABI for x86-64, figure 3.4).
// It ends in a jump, for a processor predicts returns by their calls: with `ret` a switch takes three times as long.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch(Context *from, Context to);
asm(R"(
    .text
    .globl emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    popq %rcx; jmp *%rcx
    .size emulator_switch, .-emulator_switch
)");
static void change(Context &from, Context &to) { emulator_switch(&from, to); }
static void begin(Context &context, char *stack, size_t bytes, void (*life)()) {
    void **top = (void **)(stack + bytes) - 8;
    top[6] = (void *)life; // Where the first switch returns to, with the stack as after a call.
    context = top;
}
#else
typedef ucontext_t Context;
static void change(Context &from, Context &to) { swapcontext(&from, &to); }
static void begin(Context &context, char *stack, size_t bytes, void (*life)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    makecontext(&context, life, 0);
}
#endif

enum State { READY, AT_WARP, AT_BLOCK, DONE };
struct Fiber {
    Context context;
    State state;
    Three thread;
};
const int WARP = 32, MOST = 1024;
const size_t STACK = 64 << 10, PAGE = 4 << 10;

static Fiber block[MOST];
static int threads = 0; // How many of them the block has.
static int living = 0;  // How many of them have a stack; they are kept from launch to launch.
static Fiber *running;
static bool has_waited; // Whether the block came to a barrier yet.
static Context scheduler;
static const char *name; // The kernel's, for messages.
static const std::function<void()> *kernel;
static std::mutex launching;

[[noreturn]] static void refuse(const char *why) {
    const Three &at = ours::blockIdx;
    fprintf(stderr, "the emulated GPU stops in kernel %s, block (%u, %u, %u): %s\n", name, at.x, at.y, at.z, why);
    abort();
}

/// Gives the turn back until the barrier opens.
static void wait(State barrier) {
    running->state = barrier;
    has_waited |= barrier != DONE;
    change(running->context, scheduler);
}

/// What a fiber does, once a block.
static void life() {
    for (;;) {
        (*kernel)();
        wait(DONE);
    }
}

static void give_stack(int fiber) {
    char *stack = (char *)mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) refuse("no memory for its threads' stacks");
    mprotect(stack, PAGE, PROT_NONE); // A stack that overflows faults.
    // Tops at the same place of each page would compete for the same lines of the cache.
    begin(block[fiber].context, stack, STACK - fiber % 16 * 256, life);
}

static int count(const Fiber *fibers, int length, State state) {
    int found = 0;
    for (int i = 0; i < length; i++) found += fibers[i].state == state;
    return found;
}

static void make_ready(Fiber *fibers, int length) {
    for (int i = 0; i < length; i++) fibers[i].state = fibers[i].state == DONE ? DONE : READY;
}

/// Runs a warp until each of its threads waits for the block or is done. Those that are done need not come to the warp's barriers.
static void run_warp(Fiber *warp, int lanes, bool down) {
    for (;; down = !down) {
        for (int i = 0; i < lanes; i++) {
            Fiber &fiber = warp[down ? lanes - 1 - i : i];
            if (fiber.state != READY) continue;
            running = &fiber;
            ours::threadIdx = fiber.thread;
            change(scheduler, fiber.context);
        }
        if (count(warp, lanes, AT_WARP) == 0) return;
        if (count(warp, lanes, AT_BLOCK) > 0) refuse("threads of one warp wait at __syncwarp and at __syncthreads");
        make_ready(warp, lanes);
    }
}

static void run_block(bool down) {
    for (int i = 0; i < threads; i++) block[i].state = READY;
    has_waited = false;
    for (;; down = !down) {
        int warps = (threads + WARP - 1) / WARP;
        for (int i = 0; i < warps; i++) {
            int first = WARP * (down ? warps - 1 - i : i);
            run_warp(block + first, std::min(WARP, threads - first), down);
        }
        int waiting = count(block, threads, AT_BLOCK);
        if (waiting == 0) return;
        if (waiting < threads) {
            fprintf(stderr, "%d of %d threads wait at __syncthreads, the others are done\n", waiting, threads);
            refuse("its barrier is divergent");
        }
        make_ready(block, threads);
    }
}

/// Shared memory: what kernels declare `__shared__` is `thread_local`, which nothing else in this library is, so it lies in one piece.
struct Memory {
    void *at;
    size_t bytes;
};
static Memory shared_memory() {
    static thread_local char within;
    Memory found = {&within, 0};
    auto look = [](dl_phdr_info *library, size_t, void *found) {
        Memory &memory = *(Memory *)found;
        for (int i = 0; i < library->dlpi_phnum; i++) {
            size_t bytes = library->dlpi_phdr[i].p_memsz;
            bool is_ours = library->dlpi_phdr[i].p_type == PT_TLS && (uintptr_t)memory.at - (uintptr_t)library->dlpi_tls_data < bytes;
            if (is_ours) return memory = {library->dlpi_tls_data, bytes}, 1;
        }
        return 0;
    };
    dl_iterate_phdr(look, &found);
    return found;
}

/// Runs a kernel, block after block. Blocks find their shared memory poisoned: not a number, and an index beyond all bounds.
static void launch(const char *kernel_name, Three grid, Three shape, const std::function<void()> &thread) {
    std::lock_guard<std::mutex> alone(launching);
    name = kernel_name, kernel = &thread, threads = shape.x * shape.y * shape.z;
    ours::gridDim = grid, ours::blockDim = shape, ours::blockIdx = {0, 0, 0};
    for (; living < threads; living++) give_stack(living);
    for (unsigned i = 0; i < (unsigned)threads; i++) block[i].thread = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
    const Memory shared = shared_memory();
    bool down = false;
    has_waited = true;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++, down = !down) {
                if (has_waited) memset(shared.at, 0xff, shared.bytes); // Where blocks share nothing, large grids need not pay for it.
                ours::blockIdx = {x, y, z};
                run_block(down);
            }
        }
    }
}

} // namespace fibers

// -- the language --------------------------------------------------------------------------------------------------

#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

namespace ours {

static void __syncthreads() { fibers::wait(fibers::AT_BLOCK); }
static void __syncwarp(unsigned mask = ~0u) {
    if (mask != ~0u) fibers::refuse("__syncwarp of a part of the warp is not emulated");
    fibers::wait(fibers::AT_WARP);
}

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static float rsqrtf(float a) { return 1 / sqrtf(a); }
static float __expf(float a) { return expf(a); }
static float __logf(float a) { return logf(a); }
static float __fdividef(float a, float b) { return a / b; }
template <typename T> static T __ldg(const T *at) { return *at; }

struct __nv_bfloat16 {
    uint16_t bits;
};
static float __bfloat162float(__nv_bfloat16 a) { return __builtin_bit_cast(float, (uint32_t)a.bits << 16); }
/// To the nearest, and of two to the even one.
static __nv_bfloat16 __float2bfloat16(float a) {
    uint32_t bits = __builtin_bit_cast(uint32_t, a);
    return {std::isnan(a) ? (uint16_t)0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
static __nv_bfloat16 __float2bfloat16_rn(float a) { return __float2bfloat16(a); }

// -- a warp's matrices ---------------------------------------------------------------------------------------------

// A warp's first lane does the work, on whole matrices in its own fragment; the other lanes' fragments are never read. So a fragment has no
// elements `x`, and what lanes write to memory is there for `load_matrix_sync` only after a barrier, as the GPU demands too. Sums are single
// precision in the order of k; the GPU's order is its own.
namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

/// To the nearest of 10 bits' mantissa, and of two to the larger one (PTX: cvt.rna.tf32.f32).
static float __float_to_tf32(float a) {
    return std::isnan(a) ? a : __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, a) + 0x1000) & ~0x1fffu);
}

/// An element's type in memory.
template <typename T> using Stored = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;

/// An element as it is multiplied. The GPU truncates what is not rounded to tf32; here it is rounded.
template <typename T> static float element(Stored<T> value) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return __bfloat162float(value);
    else if constexpr (std::is_same_v<T, precision::tf32>) return __float_to_tf32(value);
    else return value;
}

static bool leads() { return (fibers::running - fibers::block) % fibers::WARP == 0; }

template <int ROWS, int COLUMNS> struct Matrix {
    float rows[ROWS][COLUMNS];

    Matrix() {
        if (leads()) memset(rows, 0xff, sizeof rows); // Not a number until it is filled or loaded.
    }
};

template <int M, int N, int K, typename T>
constexpr bool is_offered = M == 16 && N == 16 && (std::is_same_v<T, __nv_bfloat16> ? K == 16 : std::is_same_v<T, precision::tf32> && K == 8);

template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment;
template <int M, int N, int K, typename T, typename Layout> struct fragment<matrix_a, M, N, K, T, Layout> : Matrix<M, K> {
    static_assert(is_offered<M, N, K, T>);
};
template <int M, int N, int K, typename T, typename Layout> struct fragment<matrix_b, M, N, K, T, Layout> : Matrix<K, N> {
    static_assert(is_offered<M, N, K, T>);
};
template <int M, int N, int K> struct fragment<accumulator, M, N, K, float> : Matrix<M, N> {};

static void check(const void *at, unsigned ld, size_t element) {
    if ((uintptr_t)at % 32 != 0) fibers::refuse("a fragment's pointer is not aligned to 32 bytes");
    if (ld * element % 16 != 0) fibers::refuse("a fragment's ld is not a multiple of 16 bytes (8 of 16 bits, 4 floats)");
}

template <typename T, int ROWS, int COLUMNS> static void load(Matrix<ROWS, COLUMNS> &to, const Stored<T> *from, unsigned ld, bool by_row) {
    if (!leads()) return;
    check(from, ld, sizeof *from);
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t j = 0; j < COLUMNS; j++) to.rows[i][j] = element<T>(from[by_row ? i * ld + j : j * ld + i]);
    }
}
template <typename Use, int M, int N, int K, typename T, typename Layout>
static void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &to, const Stored<T> *from, unsigned ld) {
    load<T>(to, from, ld, std::is_same_v<Layout, row_major>);
}
template <int M, int N, int K>
static void load_matrix_sync(fragment<accumulator, M, N, K, float> &to, const float *from, unsigned ld, layout_t layout) {
    load<float>(to, from, ld, layout == mem_row_major);
}
template <int M, int N, int K>
static void store_matrix_sync(float *to, const fragment<accumulator, M, N, K, float> &from, unsigned ld, layout_t layout) {
    if (!leads()) return;
    check(to, ld, sizeof *to);
    for (size_t i = 0; i < M; i++) {
        for (size_t j = 0; j < N; j++) to[layout == mem_row_major ? i * ld + j : j * ld + i] = from.rows[i][j];
    }
}
template <typename Use, int M, int N, int K, typename T, typename Layout>
static void fill_fragment(fragment<Use, M, N, K, T, Layout> &to, Stored<T> value) {
    if (!leads()) return;
    for (auto &row : to.rows) {
        for (float &at : row) at = element<T>(value);
    }
}
/// d = a b + c; d may be c.
template <int M, int N, int K, typename T, typename A, typename B>
static void mma_sync(fragment<accumulator, M, N, K, float> &d, const fragment<matrix_a, M, N, K, T, A> &a,
                     const fragment<matrix_b, M, N, K, T, B> &b, const fragment<accumulator, M, N, K, float> &c) {
    if (!leads()) return;
    for (int i = 0; i < M; i++) {
        float sums[N];
        memcpy(sums, c.rows[i], sizeof sums);
        for (int k = 0; k < K; k++) {
            for (int j = 0; j < N; j++) sums[j] += a.rows[i][k] * b.rows[k][j];
        }
        memcpy(d.rows[i], sums, sizeof sums);
    }
}

} // namespace nvcuda::wmma
} // namespace ours
