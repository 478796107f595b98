// A recorded run of device work that is launched again as one: CUDA graphs, from the plug-in.
#pragma once

#include <functional>
#include <memory>

namespace keepsight::ops {

class DeviceGraph {
public:
    virtual ~DeviceGraph() = default;
    virtual void replay() = 0; // on the current stream, asynchronous
};

// Records what `work` launches; it is not run. Work may neither copy to or from the host nor wait; tensors it makes live as long as the graph and are
// overwritten by every replay. What it changes on the host happens once, now. nullptr: no plug-in. Throws what work throws.
std::unique_ptr<DeviceGraph> recordGraph(const std::function<void()>& work);

} // namespace keepsight::ops
