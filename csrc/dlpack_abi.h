#pragma once

// The part of DLPack's C ABI (major version 1) that reading borrowed tensors needs: https://github.com/dmlc/dlpack

#include <cstdint>

namespace progdistill::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr const char* kCapsuleName = "dlpack_exchange_api";

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kPinnedByCuda = 3 };
enum TypeCode : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; may be null for contiguous tensors before DLPack 1.2
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  ExchangeApi* older;  // an earlier version of the table, or null
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrowed; 0, or -1 with a Python exception set
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** stream);
};

}  // namespace progdistill::dlpack
