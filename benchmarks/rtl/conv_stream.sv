// Streaming convolution of data flow `row_pixel`: line buffer, sliding window, folded multiply-accumulate array.
//
// Pixels come row by row, IC channels per cycle; the engine adds P zeros around the frame itself.  A finished window is
// handed to the array, which works on its copy for F = (M / PE) * (K*K*C / SIMD) cycles while the next window is
// collected.  Whoever is done first waits.  Array: weight read, product, adder tree of log2(SIMD) levels, accumulation.
module conv_stream #(
    parameter int C = 1,      // input channels
    parameter int M = 1,      // output channels
    parameter int K = 1,      // kernel rows and columns
    parameter int S = 1,      // stride
    parameter int P = 0,      // zeros on each side
    parameter int H = 1,      // rows
    parameter int W = 1,      // columns
    parameter int PE = 1,     // output channels in parallel; divides M
    parameter int SIMD = 1,   // products per output channel in parallel; divides K*K*C
    parameter int IC = 1,     // channels per cycle at the input; divides C
    parameter int AB = 4,     // bits of an activation, unsigned
    parameter int WB = 4,     // bits of a weight, signed
    parameter int SUM = AB + WB + $clog2(K * K * C) + 1
) (
    input logic clk,
    input logic rst,
    input logic weight_write,
    input int weight_address,
    input logic [PE*SIMD*WB-1:0] weight_data,
    input logic in_valid,
    output logic in_ready,
    input logic [IC*AB-1:0] in_data,
    output logic out_valid,
    output logic [PE*SUM-1:0] out_data
);
  localparam int HP = H + 2 * P;
  localparam int WP = W + 2 * P;
  localparam int GROUPS = C / IC;
  localparam int REDUCTION = K * K * C;
  localparam int BLOCKS = REDUCTION / SIMD;
  localparam int FOLDS = (M / PE) * BLOCKS;
  localparam int LEVELS = $clog2(SIMD);
  localparam int LEAVES = 1 << LEVELS;
  localparam int LINES = K > 1 ? K - 1 : 1;
  localparam int PIXEL = C * AB;

  // -- line buffer and window ----------------------------------------------------------------------------------------
  int y, x, group;
  logic full;  // a finished window waits for the array
  logic [PIXEL-1:0] lines[LINES][WP];
  logic [PIXEL-1:0] window[K][K];
  logic [PIXEL-1:0] next_window[K][K];
  logic [PIXEL-1:0] partial, pixel;
  logic [REDUCTION*AB-1:0] flat;
  logic is_padding, accept, pixel_done, window_done, array_free, hand_over;

  assign is_padding = y < P || y >= H + P || x < P || x >= W + P;
  assign accept = !rst && !full && (is_padding || in_valid);
  assign in_ready = !rst && !full && !is_padding;
  assign pixel_done = accept && group == GROUPS - 1;
  assign window_done = pixel_done && y >= K - 1 && x >= K - 1 && (y - K + 1) % S == 0 && (x - K + 1) % S == 0;
  assign hand_over = (window_done || full) && array_free;

  always_comb begin
    pixel = partial;
    pixel[group*IC*AB+:IC*AB] = is_padding ? '0 : in_data;
    for (int r = 0; r < K; r++)
      for (int c = 0; c < K; c++)
        if (full) next_window[r][c] = window[r][c];
        else if (c < K - 1) next_window[r][c] = window[r][c+1];
        else next_window[r][c] = r < K - 1 ? lines[r%LINES][x] : pixel;
    for (int r = 0; r < K; r++)
      for (int c = 0; c < K; c++) flat[(r*K+c)*PIXEL+:PIXEL] = next_window[r][c];
  end

  always_ff @(posedge clk) begin
    if (rst) begin
      y <= 0;
      x <= 0;
      group <= 0;
      full <= 0;
    end else begin
      full <= (window_done || full) && !array_free;
      if (accept) begin
        partial <= pixel;
        group <= pixel_done ? 0 : group + 1;
      end
      if (pixel_done) begin
        for (int r = 0; r < K; r++) for (int c = 0; c < K; c++) window[r][c] <= next_window[r][c];
        for (int r = 0; r < K - 1; r++) lines[r%LINES][x] <= r < K - 2 ? lines[(r+1)%LINES][x] : pixel;
        x <= x == WP - 1 ? 0 : x + 1;
        if (x == WP - 1) y <= y == HP - 1 ? 0 : y + 1;
      end
    end
  end

  // -- array ---------------------------------------------------------------------------------------------------------
  logic busy;
  int fold, block;
  logic [REDUCTION*AB-1:0] active;
  logic [PE*SIMD*WB-1:0] weights[FOLDS];
  logic [PE*SIMD*WB-1:0] weight_word;
  logic [SIMD*AB-1:0] acts;
  logic [LEVELS:0][PE-1:0][LEAVES-1:0][SUM-1:0] tree, next_tree;  // two's complement
  logic [PE-1:0][SUM-1:0] sum, next_sum;
  logic [LEVELS+1:0] valid, first, last;  // travel along with the operands

  always_comb begin
    next_tree = '0;
    for (int p = 0; p < PE; p++) begin
      for (int i = 0; i < SIMD; i++)
        next_tree[0][p][i] = SUM'($signed(weight_word[(p*SIMD+i)*WB+:WB])) * $signed(SUM'({1'b0, acts[i*AB+:AB]}));
      for (int l = 1; l <= LEVELS; l++)
        for (int i = 0; i < (LEAVES >> l); i++) next_tree[l][p][i] = tree[l-1][p][2*i] + tree[l-1][p][2*i+1];
      next_sum[p] = (first[LEVELS+1] ? '0 : sum[p]) + tree[LEVELS][p][0];
    end
  end

  assign array_free = !busy || fold == FOLDS - 1;

  always_ff @(posedge clk) begin
    if (weight_write) weights[weight_address] <= weight_data;
    if (hand_over) active <= flat;
    if (rst) begin
      busy <= 0;
      fold <= 0;
      block <= 0;
      valid <= '0;
    end else begin
      busy <= hand_over || (busy && !array_free);
      if (busy) begin
        fold <= fold == FOLDS - 1 ? 0 : fold + 1;
        block <= block == BLOCKS - 1 ? 0 : block + 1;
      end
      valid <= {valid[LEVELS:0], busy};
    end
    first <= {first[LEVELS:0], block == 0};
    last <= {last[LEVELS:0], block == BLOCKS - 1};
    weight_word <= weights[fold];
    acts <= active[block*SIMD*AB+:SIMD*AB];
    tree <= next_tree;
    if (valid[LEVELS+1]) begin
      sum <= next_sum;
      out_data <= next_sum;
    end
    out_valid <= !rst && valid[LEVELS+1] && last[LEVELS+1];
  end
endmodule
