#pragma once

namespace progdistill::cuda {

/// The text of an error code that a launcher returned.
const char* error_text(int code);

}  // namespace progdistill::cuda
