// One tile of a matrix product, a block of threads each: 128 rows and 64 columns of sums.
//
// Both factors pass through shared memory, 32 products of each sum at a time, while the next are on their way to registers. Where the factors'
// values come from is their own business: a convolution's are looked up where they lie, so no patch is ever copied to memory (implicit GEMM;
// Chetlur et al. 2014, <https://arxiv.org/abs/1410.0759>). A sum's products are added in one fixed order.

static const int ROWS = 128, COLUMNS = 64, DEPTH = 32, THREADS = 256;

// How products are taken: numbers as shared memory holds them, and what lies between its lines so that threads meet in no bank, or that tensor
// cores find their alignment; for these, the products of a step, and the order of a factor whose neighbours lie along a sum, or not.
struct Fp32 {
    typedef float Held;
    static const int PAD = 1;
};
template <bool ALONG> struct Order {
    typedef nvcuda::wmma::row_major Left;
    typedef nvcuda::wmma::col_major Right;
};
template <> struct Order<false> {
    typedef nvcuda::wmma::col_major Left;
    typedef nvcuda::wmma::row_major Right;
};
struct Tf32 {
    typedef float Held;
    typedef nvcuda::wmma::precision::tf32 Operand;
    static const int PAD = 8, STEP = 8;
};
struct Bf16 {
    typedef bf16 Held;
    typedef bf16 Operand;
    static const int PAD = 8, STEP = 16;
};

__device__ __forceinline__ void hold(Fp32, float *to, float x) { *to = x; }
__device__ __forceinline__ void hold(Tf32, float *to, float x) { *to = nvcuda::wmma::__float_to_tf32(x); }
__device__ __forceinline__ void hold(Bf16, bf16 *to, float x) { *to = __float2bfloat16(x); }

// Lines of a factor in shared memory: rows where neighbours lie along a sum, else the sum's steps.
template <class Precision, bool ALONG, int SIZE> struct Lines {
    static const int PITCH = (ALONG ? DEPTH : SIZE) + Precision::PAD;
    static const int LENGTH = (ALONG ? SIZE : DEPTH) * PITCH;
};

// Takes one factor's share of the tile to shared memory. `Factor` has a `Line` and a `Place` in it, and loads four neighbours.
template <class Precision, class Factor, int SIZE> struct Reader {
    typedef Lines<Precision, Factor::ALONG, SIZE> Shared;
    static const int QUADS = (Factor::ALONG ? DEPTH : SIZE) / 4;
    static const int APART = THREADS / QUADS;
    static const int PIECES = SIZE * DEPTH / 4 / THREADS;

    Factor factor;
    int quad, first;
    typename Factor::Line lines[PIECES];
    typename Factor::Place place;
    Four<typename Factor::Number> pieces[PIECES];

    __device__ __forceinline__ Reader(Factor factor, int start) : factor(factor) {
        quad = threadIdx.x % QUADS * 4;
        first = threadIdx.x / QUADS;
        if (Factor::ALONG) {
            for (int i = 0; i < PIECES; i++) lines[i] = factor.line(start + first + i * APART);
        } else {
            place = factor.place(start + quad);
        }
    }

    // The products from `depth` on, to registers.
    __device__ __forceinline__ void fetch(int depth) {
        if (Factor::ALONG) {
            place = factor.place(depth + quad);
        } else {
            for (int i = 0; i < PIECES; i++) lines[i] = factor.line(depth + first + i * APART);
        }
        for (int i = 0; i < PIECES; i++) pieces[i] = factor.load(lines[i], place);
    }

    __device__ __forceinline__ void put(typename Precision::Held *shared) {
        for (int i = 0; i < PIECES; i++) {
            typename Precision::Held *to = shared + (first + i * APART) * Shared::PITCH + quad;
            for (int j = 0; j < 4; j++) hold(Precision(), to + j, number(pieces[i].at[j]));
        }
    }
};

// The sums of one tile, spread over its threads: on tensor cores, 32 rows and 32 columns a warp.
template <class Precision, bool LEFT, bool RIGHT> struct Sums {
    typedef nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, Precision::STEP, float> Sum;
    Sum at[2][2];
    int row, column;

    __device__ __forceinline__ Sums() {
        int warp = threadIdx.x / 32;
        row = warp % 4 * 32;
        column = warp / 4 * 32;
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) nvcuda::wmma::fill_fragment(at[i][j], 0.0f);
    }

    __device__ __forceinline__ void add(const typename Precision::Held *left, const typename Precision::Held *right) {
        using namespace nvcuda::wmma;
        typedef typename Precision::Operand Operand;
        const int LEFT_PITCH = Lines<Precision, LEFT, ROWS>::PITCH, RIGHT_PITCH = Lines<Precision, RIGHT, COLUMNS>::PITCH;
        for (int k = 0; k < DEPTH; k += Precision::STEP) {
            fragment<matrix_a, 16, 16, Precision::STEP, Operand, typename Order<LEFT>::Left> lefts[2];
            fragment<matrix_b, 16, 16, Precision::STEP, Operand, typename Order<RIGHT>::Right> rights[2];
            for (int i = 0; i < 2; i++) {
                int r = row + 16 * i, c = column + 16 * i;
                load_matrix_sync(lefts[i], left + (LEFT ? r * LEFT_PITCH + k : k * LEFT_PITCH + r), LEFT_PITCH);
                load_matrix_sync(rights[i], right + (RIGHT ? c * RIGHT_PITCH + k : k * RIGHT_PITCH + c), RIGHT_PITCH);
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++) mma_sync(at[i][j], lefts[i], rights[j], at[i][j]);
        }
    }

    __device__ __forceinline__ void put(float *tile, int pitch) {
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++)
                nvcuda::wmma::store_matrix_sync(tile + (row + 16 * i) * pitch + column + 16 * j, at[i][j], pitch, nvcuda::wmma::mem_row_major);
    }
};

// The same in fp32 by each thread, 8 rows and 4 columns.
template <bool LEFT, bool RIGHT> struct Sums<Fp32, LEFT, RIGHT> {
    float at[8][4];
    int row, column;

    __device__ __forceinline__ Sums() {
        row = threadIdx.x / 16 * 8;
        column = threadIdx.x % 16 * 4;
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 4; j++) at[i][j] = 0.0f;
    }

    __device__ __forceinline__ void add(const float *left, const float *right) {
        const int LEFT_PITCH = Lines<Fp32, LEFT, ROWS>::PITCH, RIGHT_PITCH = Lines<Fp32, RIGHT, COLUMNS>::PITCH;
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            float lefts[8], rights[4];
            for (int i = 0; i < 8; i++) lefts[i] = left[LEFT ? (row + i) * LEFT_PITCH + k : k * LEFT_PITCH + row + i];
            for (int j = 0; j < 4; j++) rights[j] = right[RIGHT ? (column + j) * RIGHT_PITCH + k : k * RIGHT_PITCH + column + j];
            for (int i = 0; i < 8; i++)
                for (int j = 0; j < 4; j++) at[i][j] = fmaf(lefts[i], rights[j], at[i][j]);
        }
    }

    __device__ __forceinline__ void put(float *tile, int pitch) {
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 4; j++) tile[(row + i) * pitch + column + j] = at[i][j];
    }
};

// Where sums go: `rows` lines of `columns` values, `pitch` apart; with a bias for each column, and an activation.
template <typename T> struct Result {
    T *to;
    // Gets the values before the activation; may be null.
    T *before;
    const float *bias;
    int rows, columns, pitch, activation;

    __device__ __forceinline__ void put(int row, int column, const float *sums) {
        if (row >= rows) return;
        u64 at = (u64)row * pitch + column;
        for (int i = 0; i < 4; i++) {
            if (column + i >= columns) return;
            float value = sums[i] + (bias ? bias[column + i] : 0.0f);
            if (before) store(before + at + i, value);
            store(to + at + i, activated(activation, value));
        }
    }
};

// The shared memory of a block: both factors' shares, and then the sums.
template <class Precision, class Left, class Right> struct Memory {
    static const int LEFTS = Lines<Precision, Left::ALONG, ROWS>::LENGTH, RIGHTS = Lines<Precision, Right::ALONG, COLUMNS>::LENGTH;
    static const int PITCH = COLUMNS + 4;
    static const int SHARES = (LEFTS + RIGHTS) * (int)sizeof(typename Precision::Held), SUMS = ROWS * PITCH * (int)sizeof(float);
    static const int BYTES = SHARES > SUMS ? SHARES : SUMS;
};

// Computes the block's tile of `left × right`, the products from `depth` up to `end`.
template <class Precision, class Left, class Right, class Result>
__device__ __forceinline__ void product(Left left, Right right, Result result, int depth, int end, unsigned char *memory) {
    typedef Memory<Precision, Left, Right> Shared;
    typename Precision::Held *lefts = (typename Precision::Held *)memory, *rights = lefts + Shared::LEFTS;
    float *tile = (float *)memory;

    Reader<Precision, Left, ROWS> from_left(left, blockIdx.x * ROWS);
    Reader<Precision, Right, COLUMNS> from_right(right, blockIdx.y * COLUMNS);
    Sums<Precision, Left::ALONG, Right::ALONG> sums;
    from_left.fetch(depth);
    from_right.fetch(depth);
    for (; depth < end; depth += DEPTH) {
        from_left.put(lefts);
        from_right.put(rights);
        __syncthreads();
        if (depth + DEPTH < end) {
            from_left.fetch(depth + DEPTH);
            from_right.fetch(depth + DEPTH);
        }
        sums.add(lefts, rights);
        __syncthreads();
    }
    sums.put(tile, Shared::PITCH);
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * COLUMNS / 4; i += THREADS) {
        int row = i / (COLUMNS / 4), column = i % (COLUMNS / 4) * 4;
        result.put(blockIdx.x * ROWS + row, blockIdx.y * COLUMNS + column, tile + row * Shared::PITCH + column);
    }
}
