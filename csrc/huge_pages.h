#pragma once

#include <cstdint>

namespace progdistill {

/// Asks for huge pages where a result of so many bytes is about to be written. A large one is fresh memory in nearly
/// every call, and taking it page by page costs several times what an element-wise kernel does in it. Nothing happens to
/// small results, to memory that has its pages already, and where the system has no such pages to give.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace progdistill
