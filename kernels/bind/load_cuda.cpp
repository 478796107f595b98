#include "kernels/bind/device_graph.h"
#include "kernels/bind/ops.h"

#include <c10/core/Device.h>
#include <dlfcn.h>
#include <filesystem>
#include <mutex>

namespace keepsight::ops {
namespace {

void* plugIn = nullptr;

std::string tryLoad() { // why not; empty: loaded
    if (!dlopen("libcuda.so.1", RTLD_LAZY | RTLD_GLOBAL)) return "no NVIDIA driver: libcuda.so.1 could not be loaded";
    std::error_code error;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
    const auto library = program.parent_path() / "libkeepsight_cuda.so";
    if (error || !std::filesystem::exists(library, error)) return "no CUDA plug-in: " + library.string() + " was not built";
    plugIn = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (!plugIn) {
        const char* reason = dlerror();
        return "the CUDA plug-in does not load: " + std::string(reason ? reason : library.c_str());
    }
    return {};
}

} // namespace

bool loadCuda(std::string* why) {
    static std::once_flag once;
    static std::string reason;
    std::call_once(once, [] { reason = tryLoad(); });
    if (why) *why = reason;
    return reason.empty();
}

std::unique_ptr<DeviceGraph> recordGraph(const std::function<void()>& work) {
    using Record = DeviceGraph*(const std::function<void()>&);
    if (!loadCuda()) return nullptr;
    static const auto record = reinterpret_cast<Record*>(dlsym(plugIn, "keepsightRecordGraph"));
    return std::unique_ptr<DeviceGraph>(record ? record(work) : nullptr);
}

std::optional<std::int64_t> freeMemory(at::Device device) {
    using Free = std::int64_t(int);
    if (!device.is_cuda() || !loadCuda()) return std::nullopt;
    static const auto free = reinterpret_cast<Free*>(dlsym(plugIn, "keepsightFreeMemory"));
    const std::int64_t bytes = free ? free(device.has_index() ? device.index() : 0) : -1;
    return bytes < 0 ? std::nullopt : std::optional(bytes);
}

} // namespace keepsight::ops
