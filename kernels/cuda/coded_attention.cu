// What coded_attention.cuh takes, and its form for bf16.
#include "kernels/cuda/coded_attention.cuh"

namespace keepsight::cuda {
namespace {

bool takesSide(const PackedSideArgs& side, std::int64_t dim) {
    if (!side.counts || !inTiles(side.first, side.firstHead) || !inTiles(side.tail, side.tailHead)) return false;
    const bool bytewise = side.acrossWidth || (side.bits == 3 && dim % 32 != 0); // else words are read
    return !side.codes || bytewise || (reinterpret_cast<std::uintptr_t>(side.codes) % 4 == 0 && side.codesHead % 4 == 0);
}

} // namespace

bool takesCodedAttention(const PackedAttentionArgs& args, CudaElement element) {
    const AttentionArgs& a = args.attention;
    return element != CudaElement::f32 && (a.dim == 64 || a.dim == 128) && a.queries == 1 && !a.map && a.lastCount <= 1 && inTiles(a.q.data, a.q.head) && takesSide(args.keys, a.dim) &&
           takesSide(args.values, a.dim);
}

cudaError_t launchCodedAttention(const PackedAttentionArgs& args, CudaElement element, const DecodeScratch& scratch, const CudaDevice& device,
                                 cudaStream_t stream) {
    if (!takesCodedAttention(args, element)) return cudaErrorNotSupported;
    return element == CudaElement::bf16 ? launchCoded<__nv_bfloat16>(args, scratch, device, stream) : launchCoded<__half>(args, scratch, device, stream);
}

} // namespace keepsight::cuda
