// Which copy of the kernels this machine runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace regkernels {

// Instruction sets that this processor has and this binary was built for, the widest last.
std::vector<std::string> available_isas();

// The copy in use: the widest, or what REGKERNELS_ISA or set_isa chose.
const Kernels& active_kernels();

// Throws std::invalid_argument where `name` is not one of available_isas().
void set_isa(const std::string& name);

}  // namespace regkernels
