/* Plain C: every compiler and processor. */
#define LANES 1
#define VARIANT c
#include "leaves_unit.h"
