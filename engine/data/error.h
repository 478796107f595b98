// The one exception type of the project.
#pragma once

#include <stdexcept>
#include <string>

namespace keepsight {

// Thrown by data, engine and kernels for everything a user can cause or mend: bad input, damaged files, impossible requests.
// The text is one sentence that names what was expected, what was found and where; front ends show it as it is.
class EngineError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// A request that is wrong in itself (unknown policy, parameter out of range): the CLI exits with 2 instead of 1.
class UsageError : public EngineError {
public:
    using EngineError::EngineError;
};

} // namespace keepsight
