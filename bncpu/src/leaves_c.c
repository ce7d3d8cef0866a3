/* Plain C: every compiler and processor. */
#define VARIANT c
#define REGISTERS "registers_c.h"
#include "leaves_unit.h"
