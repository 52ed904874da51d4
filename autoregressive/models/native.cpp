// A few positions of every row through the GPT's layers, with a key and value cache: `GPT.step` and `GPT.window`.
//
// Each output is one dot product, summed in an order that depends on nothing but its length. So the logits of a
// position are the same, bit for bit, in any batch and in windows of any width.
//
// Shapes: R rows, W positions of each, M = R * W, D width, S cache slots, C channels of a head, V vocabulary. The
// lengths of dot products are multiples of 16.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

struct bfloat16 {
  uint16_t bits;
};

static inline Vector load(const float *from) {
  Vector values;
  memcpy(&values, from, sizeof values);
  return values;
}

static inline Vector load(const bfloat16 *from) {
  Halves halves;
  memcpy(&halves, from, sizeof halves);
#if defined(__AVX512F__)
  Words words = (Words)_mm512_cvtepu16_epi32((__m256i)halves) << 16;
#elif defined(__AVX2__)
  Words words = (Words)_mm256_cvtepu16_epi32((__m128i)halves) << 16;
#else
  Words words = __builtin_convertvector(halves, Words) << 16;
#endif
  Vector values;
  memcpy(&values, &words, sizeof values);
  return values;
}

static inline Vector load(const int8_t *from) {
#if defined(__AVX512F__)
  return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__)
  return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
  Bytes bytes;
  memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Vector);
#endif
}

// Compiled without contraction, which fuses some multiplications and additions and not others: these are, always.
static inline void add_product(Vector &sum, Vector a, Vector b) {
#if defined(__AVX512F__)
  sum = (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__)
  sum = (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  sum += a * b;
#endif
}

static inline void store(float *to, float value) { *to = value; }

static inline void store(bfloat16 *to, float value) {  // to the nearest, ties to even
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  to->bits = uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

// e^x to 2 units in the last place (Cephes' polynomial), in a form that compilers turn into vector code
static inline float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float rounded = x * 1.44269504f + 12582912.0f, n = rounded - 12582912.0f;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float power = 1.9875691500e-4f;
  for (float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    power = power * r + factor;
  power = power * r * r + r + 1;
  uint32_t bits, exponent;
  memcpy(&bits, &power, sizeof bits);
  memcpy(&exponent, &rounded, sizeof exponent);
  bits += exponent << 23;
  memcpy(&power, &bits, sizeof power);
  return power;
}

// In place, e^(scale * (value - largest)). Returns their sum, in an order that no caller's optimisation changes.
__attribute__((noinline)) static float exponentials(float *values, int64_t count, float scale) {
  const float largest = *std::max_element(values, values + count);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; i++) total += values[i] = exponential((values[i] - largest) * scale);
  return total;
}

static inline float sum(Vector values) {  // by halves
#if defined(__AVX512F__)
  const __m512d whole = (__m512d)values;
  const __m256 half = (__m256)_mm512_castpd512_pd256(whole) + (__m256)_mm512_extractf64x4_pd(whole, 1);
#elif defined(__AVX2__)
  const __m256 half = (__m256)values;
#endif
#if defined(__AVX2__)
  __m128 four = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
  four += _mm_movehl_ps(four, four);
  return four[0] + four[1];
#else
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) values[i] += values[i + half];
  return values[0];
#endif
}

// out[m, n] = x[m] . weight[n] for MB rows m, `stride` apart, and NB outputs n
template <int MB, int NB, class T>
static inline void products(const float *x, int64_t stride, const T *weight, int64_t width, float *out,
                            int64_t outputs) {
  Vector sums[MB][NB] = {};
  for (int64_t i = 0; i < width; i += LANES) {
    Vector w[NB];
    for (int n = 0; n < NB; n++) {
      w[n] = load(weight + n * width + i);
      if (MB > 1 || sizeof(T) < 4) __builtin_prefetch(weight + (n + NB) * width + i);  // for the next outputs
    }
    for (int m = 0; m < MB; m++) {
      Vector values = load(x + m * stride + i);
      for (int n = 0; n < NB; n++) add_product(sums[m][n], values, w[n]);
    }
  }
  for (int m = 0; m < MB; m++)
    for (int n = 0; n < NB; n++) out[m * outputs + n] = sum(sums[m][n]);
}

template <int NB, class T>
static void outputs_of(const float *x, const T *weight, int64_t count, int64_t width, float *out, int64_t outputs) {
  for (; count >= 6; count -= 6, x += 6 * width, out += 6 * outputs)
    products<6, NB>(x, width, weight, width, out, outputs);
  for (; count >= 2; count -= 2, x += 2 * width, out += 2 * outputs)
    products<2, NB>(x, width, weight, width, out, outputs);
  if (count) products<1, NB>(x, width, weight, width, out, outputs);
}

struct Linear {
  const void *weight;
  const float *scales;  // of each output of an int8 weight, else null
};

// out (count, outputs) = x (count, width) times the transpose of weight (outputs, width); this thread's share
template <class T>
static void linear(const float *x, const Linear &layer, int64_t count, int64_t width, float *out, int64_t outputs) {
  const T *weight = static_cast<const T *>(layer.weight);
  const int64_t groups = (outputs + 7) / 8, threads = omp_get_num_threads(), own = omp_get_thread_num();
  int64_t n = std::min(outputs, groups * own / threads * 8);
  const int64_t first = n, end = std::min(outputs, groups * (own + 1) / threads * 8);
  if (count <= 2)
    for (; n + 8 <= end; n += 8) outputs_of<8>(x, weight + n * width, count, width, out + n, outputs);
  for (; n + 2 <= end; n += 2) outputs_of<2>(x, weight + n * width, count, width, out + n, outputs);
  for (; n < end; n++) outputs_of<1>(x, weight + n * width, count, width, out + n, outputs);
  if (layer.scales)
    for (int64_t m = 0; m < count; m++)
      for (n = first; n < end; n++) out[m * outputs + n] *= layer.scales[n];
}

static void normalise(const float *x, const float *weight, int64_t width, float eps, float *out) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; i++) squares += x[i] * x[i];
  const float scale = 1 / std::sqrt(squares / width + eps);
  for (int64_t i = 0; i < width; i++) out[i] = x[i] * scale * weight[i];
}

struct Model {
  int64_t layers, width, heads, kv_heads, channels, hidden, vocabulary, turns;
  float eps;
  const float *cosines, *sines;  // (turns, C)
  const Linear *linears;         // of each layer wqkv, wo, w1, w3, w2; then the output
  const float *const *norms;     // of each layer before attention and feed-forward; then the last
};

struct Cache {
  void *const *keys, *const *values;  // of each layer (R, kv heads, S, C)
  int64_t row, head;                  // strides in elements
};

// Turn query and key of one position, and put key and value into the cache.
template <class T>
static void place(const Model &model, float *qkv, int64_t position, int64_t row, int64_t layer, const Cache &cache) {
  const int64_t channels = model.channels, turn = std::min(position, model.turns - 1) * channels;
  float *key = qkv + model.heads * channels, *value = key + model.kv_heads * channels;
  for (float *x = qkv; x < value; x += channels)
    for (int64_t c = 0; c < channels; c += 2) {
      const float *cosine = model.cosines + turn + c, *sine = model.sines + turn + c, even = x[c], odd = x[c + 1];
      x[c] = even * cosine[0] + odd * sine[0];
      x[c + 1] = odd * cosine[1] + even * sine[1];
    }
  for (int64_t head = 0; head < model.kv_heads; head++) {
    const int64_t slot = row * cache.row + head * cache.head + position * channels;
    for (int64_t c = 0; c < channels; c++) {
      store(static_cast<T *>(cache.keys[layer]) + slot + c, key[head * channels + c]);
      store(static_cast<T *>(cache.values[layer]) + slot + c, value[head * channels + c]);
    }
  }
}

// For MB positions, which all see `common` slots: NB vectors of the mean of the slots' values, weighted by their scores
template <int MB, int NB, class T>
static inline void mix(const float *scores, int64_t row, int64_t common, const int64_t *positions, const T *values,
                       int64_t channels, const float *totals, float *out, int64_t out_stride) {
  Vector sums[MB][NB] = {};
  for (int64_t s = 0; s < common; s++) {
    Vector value[NB];
    for (int n = 0; n < NB; n++) value[n] = load(values + s * channels + n * LANES);
    for (int m = 0; m < MB; m++) {
      const Vector score = scores[m * row + s] + Vector{};
      for (int n = 0; n < NB; n++) add_product(sums[m][n], score, value[n]);
    }
  }
  for (int m = 0; m < MB; m++) {
    for (int64_t s = common; s <= positions[m]; s++) {
      const Vector score = scores[m * row + s] + Vector{};
      for (int n = 0; n < NB; n++) add_product(sums[m][n], score, load(values + s * channels + n * LANES));
    }
    for (int n = 0; n < NB; n++) sums[m][n] /= totals[m];
    memcpy(out + m * out_stride, sums[m], sizeof sums[m]);
  }
}

// MB positions of one head of a row: attend to slots 0 to their own. Queries and outputs are so many floats apart.
template <int MB, class T>
static void attend(const float *queries, int64_t query_stride, const T *keys, const T *values, const int64_t *positions,
                   int64_t channels, std::vector<float> &scores, float *out, int64_t out_stride) {
  constexpr int KEYS = MB == 1 ? 4 : 2, BLOCK = LANES / 4;
  const auto [first, last] = std::minmax_element(positions, positions + MB);
  const int64_t common = *first + 1, slots = *last + 1, row = (slots + 15) / 16 * 16;
  scores.resize(MB * row);
  int64_t s = 0;
  for (; s + KEYS <= slots; s += KEYS)
    products<MB, KEYS>(queries, query_stride, keys + s * channels, channels, &scores[s], row);
  for (; s < slots; s++) products<MB, 1>(queries, query_stride, keys + s * channels, channels, &scores[s], row);
  const float scale = 1 / std::sqrt(float(channels));
  float totals[MB];
  for (int m = 0; m < MB; m++) totals[m] = exponentials(&scores[m * row], positions[m] + 1, scale);
  int64_t c = 0;
  for (; c + BLOCK * LANES <= channels; c += BLOCK * LANES)
    mix<MB, BLOCK>(scores.data(), row, common, positions, values + c, channels, totals, out + c, out_stride);
  for (; c < channels; c += LANES)
    mix<MB, 1>(scores.data(), row, common, positions, values + c, channels, totals, out + c, out_stride);
}

template <class T, class W>  // of the cache and of the weights
static void run(const Model &model, int64_t rows, int64_t wide, float *x, const int64_t *positions, const Cache &cache,
                float *logits, int threads) {
  const int64_t count = rows * wide, width = model.width, hidden = model.hidden, channels = model.channels;
  const int64_t heads = model.heads, shared = heads / model.kv_heads, joint = (heads + 2 * model.kv_heads) * channels;
  std::vector<float> normed(count * width), qkv(count * joint), attended(count * width), added(count * width),
      gate(count * hidden), up(count * hidden);
  const int64_t together = wide % 4 ? 1 : 4;
  const auto some = together == 4 ? attend<4, T> : attend<1, T>;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scores;
    for (int64_t layer = 0; layer < model.layers; layer++) {
      const Linear *weights = model.linears + 5 * layer;
#pragma omp for
      for (int64_t m = 0; m < count; m++)
        normalise(x + m * width, model.norms[2 * layer], width, model.eps, &normed[m * width]);
      linear<W>(normed.data(), weights[0], count, width, qkv.data(), joint);
#pragma omp barrier
#pragma omp for
      for (int64_t m = 0; m < count; m++) place<T>(model, &qkv[m * joint], positions[m], m / wide, layer, cache);
#pragma omp for collapse(3) schedule(dynamic)
      for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++)
          for (int64_t m = 0; m < wide; m += together) {
            const int64_t slots = row * cache.row + head / shared * cache.head, first = row * wide + m;
            some(&qkv[first * joint + head * channels], joint, static_cast<const T *>(cache.keys[layer]) + slots,
                 static_cast<const T *>(cache.values[layer]) + slots, positions + first, channels, scores,
                 &attended[first * width + head * channels], width);
          }
      linear<W>(attended.data(), weights[1], count, width, added.data(), width);
#pragma omp barrier
#pragma omp for
      for (int64_t m = 0; m < count; m++) {
        for (int64_t i = m * width; i < (m + 1) * width; i++) x[i] += added[i];
        normalise(x + m * width, model.norms[2 * layer + 1], width, model.eps, &normed[m * width]);
      }
      linear<W>(normed.data(), weights[2], count, width, gate.data(), hidden);
      linear<W>(normed.data(), weights[3], count, width, up.data(), hidden);
#pragma omp barrier
#pragma omp for simd
      for (int64_t i = 0; i < count * hidden; i++) gate[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
      linear<W>(gate.data(), weights[4], count, hidden, added.data(), width);
#pragma omp barrier
#pragma omp for
      for (int64_t i = 0; i < count * width; i++) x[i] += added[i];
    }
#pragma omp for
    for (int64_t m = 0; m < count; m++)
      normalise(x + m * width, model.norms[2 * model.layers], width, model.eps, &normed[m * width]);
    linear<W>(normed.data(), model.linears[5 * model.layers], count, width, logits, model.vocabulary);
  }
}

// x (R, W, D) is overwritten; positions (R, W); logits (R, W, V)
extern "C" void decode(const Model *model, int64_t rows, int64_t wide, float *x, const int64_t *positions,
                       const Cache *cache, float *logits, int bytes, int threads) {  // of a weight
  auto chosen = bytes == 4 ? run<float, float> : bytes == 2 ? run<bfloat16, bfloat16> : run<bfloat16, int8_t>;
  chosen(*model, rows, wide, x, positions, *cache, logits, threads);
}
