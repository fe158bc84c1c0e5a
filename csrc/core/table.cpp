// Collects this instruction set's kernels. Compiled once per instruction set, like the kernels themselves.
#include "core/kernels.h"
#include "core/vector.h"

namespace convscan::CONVSCAN_ISA {

convscan_status ConvDirect(const convscan_conv &);
convscan_status ConvToeplitz(const convscan_conv &);
convscan_status ConvFft(const convscan_conv &, int64_t);
convscan_status ConvFftKept(const convscan_conv &, int64_t, const void *, convscan_spectrum_storage);
convscan_status ConvFftSparse(const convscan_conv &, int64_t, const void *, convscan_spectrum_storage, const void *);
int64_t PatternBytes(int64_t, convscan_dtype);
convscan_status FilterSpectrum(const convscan_spectrum &);
convscan_status ConvRecurrence(const convscan_conv &);
int64_t FftLength(int64_t, convscan_dtype);
convscan_status FilterGradientDirect(const convscan_filter_gradient &);
convscan_status FilterGradientFft(const convscan_filter_gradient &, int64_t);
convscan_status ConvGradientDirect(const convscan_conv_gradient &);
convscan_status ConvGradientFft(const convscan_conv_gradient &, int64_t);
convscan_status ScanSequential(const convscan_scan &);
convscan_status ScanTiled(const convscan_scan &);
convscan_status ScanParallel(const convscan_scan &);
convscan_status ScanGradientSequential(const convscan_scan_gradient &);
convscan_status SelectiveOverChannels(const convscan_selective &);
convscan_status SelectiveOverStates(const convscan_selective &);
convscan_status SelectiveGradient(const convscan_selective_gradient &);
convscan_status AllpoleFilter(const convscan_allpole &);
convscan_status Vandermonde(const convscan_vandermonde &);
convscan_status VandermondeAdjoint(const convscan_vandermonde_adjoint &);
convscan_status CauchyProduct(const convscan_cauchy &);
void OnlineMeasure(const convscan_online &, convscan_online_sizes &);
convscan_status OnlinePrepare(const convscan_online &, const void *, int64_t, int64_t);
convscan_status OnlineExtend(const convscan_online &);
convscan_status OnlineRewind(const convscan_online &, int64_t);
convscan_status AttentionChunked(const convscan_attention &);
convscan_status AttentionGradientChunked(const convscan_attention_gradient &);
convscan_status AttentionStep(const convscan_attention_step &);
convscan_status DeltaRuleChunked(const convscan_delta_rule &);
convscan_status DeltaRuleGradientChunked(const convscan_delta_rule_gradient &);
int64_t MultiplyAdds(int64_t, int);

#define CONVSCAN_STRING_(x) #x
#define CONVSCAN_STRING(x) CONVSCAN_STRING_(x)

extern const Kernels kKernels;
const Kernels kKernels = {
    CONVSCAN_STRING(CONVSCAN_ISA),
    ConvDirect,
    ConvToeplitz,
    ConvFft,
    ConvFftKept,
    ConvFftSparse,
    PatternBytes,
    FilterSpectrum,
    ConvRecurrence,
    FftLength,
    FilterGradientDirect,
    FilterGradientFft,
    ConvGradientDirect,
    ConvGradientFft,
    ScanSequential,
    ScanTiled,
    ScanParallel,
    ScanGradientSequential,
    SelectiveOverChannels,
    SelectiveOverStates,
    SelectiveGradient,
    AllpoleFilter,
    Vandermonde,
    VandermondeAdjoint,
    CauchyProduct,
    OnlineMeasure,
    OnlinePrepare,
    OnlineExtend,
    OnlineRewind,
    AttentionChunked,
    AttentionGradientChunked,
    AttentionStep,
    DeltaRuleChunked,
    DeltaRuleGradientChunked,
    MultiplyAdds,
};

}  // namespace convscan::CONVSCAN_ISA
