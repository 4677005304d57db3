// Toggles the clock of the generated `top` until every engine has reported.
#include "Vtop.h"
#include "verilated.h"

int main(int argc, char** argv) {
    VerilatedContext context;
    context.commandArgs(argc, argv);
    Vtop top{&context};
    for (long cycle = 0; !top.done; ++cycle) {
        if (cycle > 20000000) return 1;
        top.clk = 0;
        top.eval();
        top.clk = 1;
        top.eval();
    }
    return 0;
}
