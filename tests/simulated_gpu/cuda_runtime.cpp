// A CUDA runtime whose one device is this machine's memory, to be loaded before torch's own: what torch allocates,
// copies, records and captures goes through here. Work is done at the call; a capture keeps it in a list instead, and a
// graph's launch does the list. Calls that a capture forbids fail as CUDA's do. torch's kernels cannot run:
// operations.py computes before it comes to them.

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Graph {
  std::vector<std::function<void()>> calls;
  cudaStreamCaptureMode mode;
  const void* thread;  // that began the capture
  unsigned long long id;
  bool invalid = false;
};
struct Stream {
  Graph* capture = nullptr;
  int priority = 0;
};
struct Event {
  bool recorded = false;
  unsigned long long capture = 0;  // its id; 0 where no capture was under way
  double seconds = 0;
};

std::recursive_mutex one_at_a_time;
std::map<const char*, size_t> device_memory, pinned_memory;
std::set<Graph*> captures;  // under way
std::map<const void*, std::string> kernel_names;
unsigned long long next_id = 1;
Stream legacy;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last_error = cudaSuccess;
thread_local char this_thread;

using Lock = std::lock_guard<std::recursive_mutex>;

Stream& of(cudaStream_t stream) {
  const bool is_legacy = stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  return is_legacy ? legacy : *reinterpret_cast<Stream*>(stream);
}
Event& of(cudaEvent_t event) { return *reinterpret_cast<Event*>(event); }

cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t refused(Graph* graph, const char* why, cudaError_t error = cudaErrorStreamCaptureUnsupported) {
  graph->invalid = true;
  std::fprintf(stderr, "simulated GPU: %s during a capture\n", why);
  return returned(error);
}

/// Calls that CUDA holds for unsafe end the captures whose mode, and whose thread's, does not allow them.
cudaError_t unsafe(const char* call) {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (Graph* graph : captures) {
    const bool own = graph->thread == &this_thread && graph->mode != cudaStreamCaptureModeRelaxed;
    const bool anyones = graph->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (own || anyones) return refused(graph, call);
  }
  return cudaSuccess;
}

Graph* under_way(unsigned long long id) {
  for (Graph* graph : captures) {
    if (graph->id == id) return graph;
  }
  return nullptr;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> call) {
  const Lock lock(one_at_a_time);
  if (Graph* graph = of(stream).capture) {
    if (graph->invalid) return returned(cudaErrorStreamCaptureInvalidated);
    graph->calls.push_back(std::move(call));
  } else {
    call();
  }
  return cudaSuccess;
}

bool lies_in(const std::map<const char*, size_t>& memory, const void* pointer) {
  const auto* address = static_cast<const char*>(pointer);
  auto next = memory.upper_bound(address);
  if (next == memory.begin()) return false;
  --next;
  return address < next->first + next->second;
}

/// Memory is page-aligned and holds NaNs, so that a read of what nobody wrote shows.
cudaError_t allocated(std::map<const char*, size_t>& memory, void** pointer, size_t bytes, const char* call) {
  const Lock lock(one_at_a_time);
  if (const cudaError_t error = unsafe(call)) return error;
  if (posix_memalign(pointer, 4096, bytes + 1) != 0) return returned(cudaErrorMemoryAllocation);
  std::memset(*pointer, 0xFF, bytes);
  memory[static_cast<char*>(*pointer)] = bytes;
  return cudaSuccess;
}

cudaError_t freed(std::map<const char*, size_t>& memory, void* pointer, const char* call) {
  const Lock lock(one_at_a_time);
  const auto found = memory.find(static_cast<char*>(pointer));
  if (pointer == nullptr) return cudaSuccess;
  if (const cudaError_t error = unsafe(call)) return error;
  if (found == memory.end()) return returned(cudaErrorInvalidValue);
  std::memset(pointer, 0xFF, found->second);  // who reads on reads NaNs
  memory.erase(found);
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t torch_kernel(const void* kernel) {
  const auto found = kernel_names.find(kernel);
  const char* name = found == kernel_names.end() ? "?" : found->second.c_str();
  std::fprintf(stderr, "simulated GPU: torch launches a kernel of its own, %s\n", name);
  return returned(cudaErrorLaunchFailure);
}

}  // namespace

// For operations.py, and (the first two) for the emulated kernels.
EXPORT int simulated_gpu_captures(void* stream) {
  const Lock lock(one_at_a_time);
  return of(static_cast<cudaStream_t>(stream)).capture != nullptr;
}
EXPORT int simulated_gpu_enqueue(void* stream, void (*call)(void*), void* argument) {
  return enqueue(static_cast<cudaStream_t>(stream), [=] { call(argument); });
}
EXPORT void simulated_gpu_refuse(void* stream, const char* why) {
  const Lock lock(one_at_a_time);
  if (Graph* graph = of(static_cast<cudaStream_t>(stream)).capture) refused(graph, why);
}
EXPORT int simulated_gpu_is_pinned(const void* pointer) {
  const Lock lock(one_at_a_time);
  return lies_in(pinned_memory, pointer);
}

// Device.
EXPORT cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int device) { return returned(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* all) { return *free = *all = size_t{139} << 30, cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* most) {
  return *least = 0, *most = -5, cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* of_device, int) {
  *of_device = {};
  std::strcpy(of_device->name, "NVIDIA H200, simulated");
  of_device->major = 9;
  of_device->multiProcessorCount = 132;
  of_device->totalGlobalMem = size_t{139} << 30;
  of_device->warpSize = 32;
  of_device->maxThreadsPerBlock = of_device->maxThreadsDim[0] = of_device->maxThreadsDim[1] = 1024;
  of_device->maxThreadsDim[2] = 64;
  of_device->maxThreadsPerMultiProcessor = 2048;
  of_device->regsPerBlock = of_device->regsPerMultiprocessor = 65536;
  of_device->sharedMemPerBlock = 48 << 10;
  of_device->sharedMemPerBlockOptin = 227 << 10;
  of_device->sharedMemPerMultiprocessor = 228 << 10;
  of_device->l2CacheSize = 60 << 20;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const std::map<cudaDeviceAttr, int> known{
      {cudaDevAttrComputeCapabilityMajor, 9},           {cudaDevAttrMultiProcessorCount, 132},
      {cudaDevAttrWarpSize, 32},                        {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},   {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
  };
  const auto found = known.find(attribute);
  return *value = found == known.end() ? 0 : found->second, cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  const Lock lock(one_at_a_time);
  return captures.empty() ? cudaSuccess : refused(*captures.begin(), "cudaDeviceSynchronize");
}

// Memory.
EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return allocated(device_memory, pointer, bytes, "cudaMalloc");
}
EXPORT cudaError_t cudaFree(void* pointer) { return freed(device_memory, pointer, "cudaFree"); }
EXPORT cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocated(pinned_memory, pointer, bytes, "cudaHostAlloc");
}
EXPORT cudaError_t cudaFreeHost(void* pointer) { return freed(pinned_memory, pointer, "cudaFreeHost"); }
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* of_pointer, const void* pointer) {
  const Lock lock(one_at_a_time);
  *of_pointer = {};
  const bool on_device = lies_in(device_memory, pointer), pinned = lies_in(pinned_memory, pointer);
  of_pointer->type = on_device ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (on_device || pinned) of_pointer->devicePointer = const_cast<void*>(pointer);
  if (pinned) of_pointer->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  const Lock lock(one_at_a_time);
  if (const cudaError_t error = unsafe("cudaMemcpy")) return error;
  return std::memmove(to, from, bytes), cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const Lock lock(one_at_a_time);
  const auto pageable = [](const void* p) { return !lies_in(device_memory, p) && !lies_in(pinned_memory, p); };
  Graph* graph = of(stream).capture;
  if (graph != nullptr && (pageable(to) || pageable(from))) return refused(graph, "a copy of pageable memory");
  return enqueue(stream, [=] { std::memmove(to, from, bytes); });
}
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}

// Streams and events.
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  return *stream = reinterpret_cast<cudaStream_t>(new Stream{nullptr, priority}), cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return *priority = of(stream).priority, cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(one_at_a_time);
  Graph* graph = of(stream).capture;
  return graph == nullptr ? cudaSuccess : refused(graph, "cudaStreamSynchronize of the capturing stream");
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = reinterpret_cast<cudaEvent_t>(new Event), cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete &of(event), cudaSuccess; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  const Lock lock(one_at_a_time);
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const Graph* graph = of(stream).capture;
  of(event) = {true, graph == nullptr ? 0 : graph->id, now.tv_sec + 1e-9 * now.tv_nsec};
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  return *milliseconds = static_cast<float>(1e3 * (of(to).seconds - of(from).seconds)), cudaSuccess;
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(one_at_a_time);
  if (Graph* graph = under_way(of(event).capture)) return refused(graph, "a captured event", cudaErrorCapturedEvent);
  return unsafe("waiting for an event");
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaEventQuery(event); }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(one_at_a_time);
  if (!of(event).recorded) return cudaSuccess;
  Graph* graph = under_way(of(event).capture);
  Graph*& own = of(stream).capture;
  if (own != nullptr && graph == nullptr) {
    return refused(own, "waiting for work outside", cudaErrorStreamCaptureIsolation);
  }
  if (own != nullptr && own != graph) return refused(own, "waiting for another", cudaErrorStreamCaptureMerge);
  if (graph != nullptr) own = graph;  // a stream that waits for a captured event joins the capture
  return cudaSuccess;
}

// Graphs.
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(*mode, thread_mode), cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(one_at_a_time);
  if (&of(stream) == &legacy) return returned(cudaErrorStreamCaptureUnsupported);
  if (of(stream).capture != nullptr) return returned(cudaErrorIllegalState);
  of(stream).capture = new Graph{{}, mode, &this_thread, next_id++};
  return captures.insert(of(stream).capture), cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* result) {
  const Lock lock(one_at_a_time);
  Graph* graph = std::exchange(of(stream).capture, nullptr);
  *result = nullptr;
  if (graph == nullptr) return returned(cudaErrorIllegalState);
  captures.erase(graph);
  const bool elsewhere = graph->thread != &this_thread && graph->mode != cudaStreamCaptureModeRelaxed;
  if (elsewhere) return returned(cudaErrorStreamCaptureWrongThread);
  if (graph->invalid) return returned(cudaErrorStreamCaptureInvalidated);
  return *result = reinterpret_cast<cudaGraph_t>(graph), cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph_of,
    const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges, size_t* count) {
  const Lock lock(one_at_a_time);
  Graph* graph = of(stream).capture;
  *status = graph == nullptr ? cudaStreamCaptureStatusNone
            : graph->invalid ? cudaStreamCaptureStatusInvalidated
                             : cudaStreamCaptureStatusActive;
  if (id != nullptr) *id = graph == nullptr ? 0 : graph->id;
  if (graph_of != nullptr) *graph_of = reinterpret_cast<cudaGraph_t>(graph);
  if (nodes != nullptr) *nodes = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* result, cudaGraph_t graph, unsigned long long) {
  if (graph == nullptr) return returned(cudaErrorInvalidValue);
  return *result = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph))), cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  return enqueue(stream, [calls = reinterpret_cast<Graph*>(graph)->calls] {
    for (const auto& call : calls) call();
  });
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return *count = reinterpret_cast<Graph*>(graph)->calls.size(), cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete reinterpret_cast<Graph*>(graph), cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  return delete reinterpret_cast<Graph*>(graph), cudaSuccess;
}

// Errors.
EXPORT cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT const char* cudaGetErrorName(cudaError_t) { return "an error of the simulated GPU"; }
EXPORT const char* cudaGetErrorString(cudaError_t error) {
  const bool capture = error >= cudaErrorStreamCaptureUnsupported && error <= cudaErrorStreamCaptureWrongThread;
  return capture                              ? "operation not permitted when stream is capturing"
         : error == cudaErrorMemoryAllocation ? "out of memory"
                                              : "an error of the simulated GPU";
}

// Kernels.
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* of_kernel, const void*) {
  *of_kernel = {};
  of_kernel->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return torch_kernel(kernel);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* kernel, void**) {
  return torch_kernel(kernel);
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return torch_kernel(kernel);
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* of_host) {
  return *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(of_host)), cudaSuccess;
}
EXPORT unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 0; }
EXPORT cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
EXPORT char __cudaInitModule(void**) { return 1; }
EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT void __cudaRegisterFunction(
    void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  kernel_names[host] = name;
}
