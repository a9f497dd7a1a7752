// A C ABI over the C++ runtime that the ExecuTorch wheel ships, small enough for ctypes. No exception and no
// C++ type crosses it. One handle must not be used by two threads at once.

#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/executor/memory_manager.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace er = executorch::runtime;
namespace ex = executorch::extension;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;

// The wheel exports these but leaves their header out.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

constexpr int kMaxDims = 16;
constexpr char kMethod[] = "forward";

// What the runtime logged as errors since the current call began: it holds the reason behind an error code.
thread_local std::string complaints;

void collect(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* text, size_t size) {
  if ((level == et_pal_log_level_t::kError || level == et_pal_log_level_t::kFatal) && complaints.size() < 150) {
    if (!complaints.empty()) complaints += "; ";
    complaints.append(text, size);
  }
  if (level == et_pal_log_level_t::kFatal) std::fprintf(stderr, "executorch: %.*s\n", static_cast<int>(size), text);
}

// index_put as the backward of a gather uses it: float rows [n, d] are added to those rows of a table [R, d] that n ids
// name. The wheel's kernel works out coordinates for each single number, which took 0.98 of the 1.66 ms of a DIN's step.
// Registered for float tensors of two dimensions only; what is not of this kind goes on to the wheel's.
constexpr char kIndexPut[] = "aten::index_put.out";
constexpr char kMatrices[] = "v1/6;0,1|6;0,1|6;0,1|6;0,1";  // self, values, out, and out again as the result

void add_rows(er::KernelRuntimeContext& context, er::Span<er::EValue*> stack) {
  const Tensor& table = stack[0]->toTensor();
  const auto indices = stack[1]->toListOptionalTensor();
  const Tensor& rows = stack[2]->toTensor();
  Tensor& out = stack[4]->toTensor();
  const bool by_ids = stack[3]->toBool() && indices.size() == 1 && indices[0].has_value() && indices[0]->dim() == 1 &&
                      indices[0]->scalar_type() == ScalarType::Long && rows.size(0) == indices[0]->size(0) &&
                      rows.size(1) == table.size(1);
  if (!by_ids) {
    static const auto general = er::get_op_function_from_registry(kIndexPut);
    if (!general.ok()) return context.fail(general.error());
    return (*general)(context, stack);
  }
  const er::Error resized = er::resize_tensor(out, table.sizes());
  if (resized != er::Error::Ok) return context.fail(resized);
  float* sums = out.mutable_data_ptr<float>();
  if (sums != table.const_data_ptr<float>()) std::memcpy(sums, table.const_data_ptr<float>(), table.nbytes());
  const int64_t* id = indices[0]->const_data_ptr<int64_t>();
  const float* row = rows.const_data_ptr<float>();
  const ssize_t height = table.size(0), width = table.size(1);
  for (ssize_t i = 0; i < rows.size(0); ++i, row += width) {
    const int64_t at = id[i] < 0 ? id[i] + height : id[i];
    if (at < 0 || at >= height) return context.fail(er::Error::InvalidArgument);
    float* sum = sums + at * width;
    for (ssize_t d = 0; d < width; ++d) sum[d] += row[d];
  }
}

// The registry is the process's: another build of this file may have been here before.
bool register_add_rows() {
  const er::KernelKey key(kMatrices);
  for (const er::Kernel& kernel : er::get_registered_kernels()) {
    if (std::strcmp(kernel.name_, kIndexPut) == 0 && kernel.kernel_key_ == key) return true;
  }
  return er::register_kernel(er::Kernel(kIndexPut, key, add_rows)) == er::Error::Ok;
}

// Memory that the exporter planned for the largest sizes. Pages that smaller tensors never reach cost nothing.
class Pages {
 public:
  explicit Pages(size_t size) : size_(size ? size : 1) {
    data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~Pages() {
    if (ok()) munmap(data_, size_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  bool ok() const { return data_ != MAP_FAILED; }
  er::Span<uint8_t> span() const { return {static_cast<uint8_t*>(data_), size_}; }

 private:
  size_t size_;
  void* data_;
};

struct Graph {
  uint32_t threads;
  std::unique_ptr<ex::MmapDataLoader> loader;
  std::unique_ptr<er::Program> program;
  std::vector<std::unique_ptr<Pages>> planned;
  std::vector<er::Span<uint8_t>> spans;
  std::unique_ptr<er::HierarchicalAllocator> arenas;
  ex::MallocMemoryAllocator permanent, temporary;
  std::unique_ptr<er::MemoryManager> manager;
  std::unique_ptr<er::Method> method;  // last, so that it goes before what it points into
};

int report(char* error, size_t capacity, const char* what, er::Error code) {
  const char* name = er::to_string(code) + sizeof("Error::") - 1;
  std::snprintf(error, capacity, "%s: %s%s%s", what, name, complaints.empty() ? "" : ": ", complaints.c_str());
  return -1;
}

void use_threads(uint32_t threads) {
  auto* pool = ex::threadpool::get_threadpool();  // one for the process
  if (pool != nullptr && pool->get_thread_count() != threads) pool->_unsafe_reset_threadpool(threads);
}

er::Error open(Graph& graph, const char* path) {
  auto loader = ex::MmapDataLoader::from(path, ex::MmapDataLoader::MlockConfig::NoMlock);
  if (!loader.ok()) return loader.error();
  graph.loader = std::make_unique<ex::MmapDataLoader>(std::move(*loader));
  auto program = er::Program::load(graph.loader.get(), er::Program::Verification::InternalConsistency);
  if (!program.ok()) return program.error();
  graph.program = std::make_unique<er::Program>(std::move(*program));
  auto meta = graph.program->method_meta(kMethod);
  if (!meta.ok()) return meta.error();
  for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
    auto size = meta->memory_planned_buffer_size(i);
    if (!size.ok()) return size.error();
    graph.planned.push_back(std::make_unique<Pages>(static_cast<size_t>(*size)));
    if (!graph.planned.back()->ok()) return er::Error::MemoryAllocationFailed;
    graph.spans.push_back(graph.planned.back()->span());
  }
  graph.arenas = std::make_unique<er::HierarchicalAllocator>(
      er::Span<er::Span<uint8_t>>(graph.spans.data(), graph.spans.size()));
  graph.manager = std::make_unique<er::MemoryManager>(&graph.permanent, graph.arenas.get(), &graph.temporary);
  auto method = graph.program->load_method(kMethod, graph.manager.get());
  if (!method.ok()) return method.error();
  graph.method = std::make_unique<er::Method>(std::move(*method));
  return er::Error::Ok;
}

}  // namespace

extern "C" {

// Opens a program file. Returns a handle for coda_close, or null with a sentence in `error`.
void* coda_open(const char* path, uint32_t threads, char* error, size_t capacity) {
  static const bool registered = er::register_pal(er::PalImpl::create(collect, __FILE__)) && register_add_rows();
  (void)registered;
  er::runtime_init();
  complaints.clear();
  use_threads(threads);
  auto graph = std::make_unique<Graph>();
  graph->threads = threads;
  const er::Error code = open(*graph, path);
  if (code != er::Error::Ok) {
    report(error, capacity, "cannot load the program", code);
    return nullptr;
  }
  return graph.release();
}

void coda_close(void* handle) { delete static_cast<Graph*>(handle); }

// How many tensors go in (output = 0) or come out (1).
int32_t coda_count(void* handle, int32_t output) {
  auto* graph = static_cast<Graph*>(handle);
  return static_cast<int32_t>(output ? graph->method->outputs_size() : graph->method->inputs_size());
}

// Declared dtype (an ExecuTorch ScalarType), number of dimensions and largest sizes of one tensor; `dims` has room
// for 16. Returns 0, or -1 if that value is not a tensor.
int32_t coda_declared(void* handle, int32_t output, int32_t index, int32_t* dtype, int32_t* ndim, int32_t* dims) {
  auto meta = static_cast<Graph*>(handle)->program->method_meta(kMethod);
  if (!meta.ok()) return -1;
  auto tensor = output ? meta->output_tensor_meta(index) : meta->input_tensor_meta(index);
  if (!tensor.ok() || tensor->sizes().size() > kMaxDims) return -1;
  *dtype = static_cast<int32_t>(tensor->scalar_type());
  *ndim = static_cast<int32_t>(tensor->sizes().size());
  for (int32_t i = 0; i < *ndim; ++i) dims[i] = tensor->sizes()[i];
  return 0;
}

// Runs `steps` times. Inputs are C-contiguous, `dims` holds all their sizes one after the other; input i of step k is
// read k * strides[i] bytes after data[i]. For each output the dtype, number of dimensions, sizes (16 places each) and
// address of its data are filled in; the data stay valid until the next call with this handle. After each step that has
// gone well, an output whose place in `into` is not null is copied k * into_strides[i] bytes after it; there must be room.
// So an output that is copied over an input feeds the next step. Returns 0, or -1 with a sentence in `error`.
int32_t coda_run(void* handle, uint32_t steps, void* const* data, const size_t* strides, const int32_t* dtypes,
                 const int32_t* ndims, const int32_t* dims, void* const* into, const size_t* into_strides,
                 int32_t* out_dtypes, int32_t* out_ndims, int32_t* out_dims, const void** out_data, char* error,
                 size_t capacity) {
  auto* graph = static_cast<Graph*>(handle);
  auto& method = *graph->method;
  complaints.clear();
  use_threads(graph->threads);
  for (uint32_t step = 0; step < steps; ++step) {
    const int32_t* size = dims;
    for (size_t i = 0; i < method.inputs_size(); ++i) {
      TensorImpl::SizesType sizes[kMaxDims];
      TensorImpl::DimOrderType order[kMaxDims];
      TensorImpl::StridesType spans[kMaxDims];
      const int32_t n = ndims[i];
      for (int32_t d = 0; d < n; ++d) {
        sizes[d] = size[d];
        order[d] = static_cast<TensorImpl::DimOrderType>(d);
      }
      for (int32_t d = n - 1, span = 1; d >= 0; span *= sizes[d--]) spans[d] = span;
      size += n;
      void* from = static_cast<char*>(data[i]) + step * strides[i];
      TensorImpl tensor(static_cast<ScalarType>(dtypes[i]), n, sizes, from, order, spans);
      const er::Error code = method.set_input(er::EValue(Tensor(&tensor)), i);
      if (code != er::Error::Ok) {
        const std::string what = "input " + std::to_string(i) + " is refused";
        return report(error, capacity, what.c_str(), code);
      }
    }
    const er::Error code = method.execute();
    if (code != er::Error::Ok) return report(error, capacity, "the program failed", code);
    for (size_t i = 0; i < method.outputs_size(); ++i) {
      const er::EValue& value = method.get_output(i);
      if (!value.isTensor() || value.toTensor().dim() > kMaxDims) {
        return report(error, capacity, "an output is not a tensor", er::Error::InvalidType);
      }
      const Tensor& tensor = value.toTensor();
      out_dtypes[i] = static_cast<int32_t>(tensor.scalar_type());
      out_ndims[i] = static_cast<int32_t>(tensor.dim());
      for (ssize_t d = 0; d < tensor.dim(); ++d) out_dims[i * kMaxDims + d] = static_cast<int32_t>(tensor.size(d));
      out_data[i] = tensor.const_data_ptr();
    }
    for (size_t i = 0; i < method.outputs_size(); ++i) {
      if (into[i] == nullptr) continue;
      void* place = static_cast<char*>(into[i]) + step * into_strides[i];
      std::memcpy(place, out_data[i], method.get_output(i).toTensor().nbytes());
    }
  }
  return 0;
}

}  // extern "C"
