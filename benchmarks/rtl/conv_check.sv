// Feeds frames to a `conv_stream`, compares every output with a convolution written as plain loops, and counts cycles:
// the latency of the first frame (first cycle to last result) and the interval from the second to the third.
module conv_check #(
    parameter int ID = 0,
    parameter int C = 1, M = 1, K = 1, S = 1, P = 0, H = 1, W = 1, PE = 1, SIMD = 1, IC = 1
) (
    input logic clk,
    output logic done
);
  localparam int AB = 4;
  localparam int WB = 4;
  localparam int FRAMES = 3;
  localparam int OH = (H + 2 * P - K) / S + 1;
  localparam int OW = (W + 2 * P - K) / S + 1;
  localparam int BLOCKS = K * K * C / SIMD;
  localparam int FOLDS = (M / PE) * BLOCKS;
  localparam int SUM = AB + WB + $clog2(K * K * C) + 1;

  function automatic int hash(int value);
    int h = value * 32'h2545F491 + ID * 7919;
    h = h ^ (h >>> 15);
    h = h * 32'h1B873593;
    return h ^ (h >>> 13);
  endfunction

  function automatic logic [AB-1:0] act(int frame, int row, int column, int channel);
    return AB'(hash(((frame * H + row) * W + column) * C + channel));
  endfunction

  function automatic logic signed [WB-1:0] weight(int out, int reduction);
    return WB'(hash(1000003 + out * K * K * C + reduction));
  endfunction

  function automatic int expected(int frame, int row, int column, int out);
    int total = 0;
    for (int r = 0; r < K; r++)
      for (int c = 0; c < K; c++) begin
        int in_row = row * S + r - P;
        int in_column = column * S + c - P;
        if (in_row >= 0 && in_row < H && in_column >= 0 && in_column < W)
          for (int i = 0; i < C; i++)
            total += int'(weight(out, (r * K + c) * C + i)) * int'({28'b0, act(frame, in_row, in_column, i)});
      end
    return total;
  endfunction

  logic rst, weight_write, in_valid, in_ready, out_valid;
  int address, sent, received, cycle, errors, latency, last_cycle, interval;
  logic [PE*SIMD*WB-1:0] weight_data;
  logic [IC*AB-1:0] in_data;
  logic [PE*SUM-1:0] out_data;

  conv_stream #(.C(C), .M(M), .K(K), .S(S), .P(P), .H(H), .W(W), .PE(PE), .SIMD(SIMD), .IC(IC), .AB(AB), .WB(WB)) dut (
      .weight_address(address), .*
  );

  initial begin
    rst = 1;
    address = 0;
    sent = 0;
    received = 0;
    cycle = 0;
    errors = 0;
    done = 0;
  end

  assign weight_write = rst && address < FOLDS;
  assign in_valid = 1;
  always_comb begin
    for (int p = 0; p < PE; p++)
      for (int i = 0; i < SIMD; i++)
        weight_data[(p*SIMD+i)*WB+:WB] = weight(address / BLOCKS * PE + p, address % BLOCKS * SIMD + i);
    for (int i = 0; i < IC; i++)
      in_data[i*AB+:AB] = act(
          sent / (H * W * C / IC), sent / (W * C / IC) % H, sent / (C / IC) % W, sent % (C / IC) * IC + i
      );
  end

  always_ff @(posedge clk) begin
    if (rst) begin
      address <= address + 1;
      rst <= address < FOLDS;
    end else if (!done) begin
      cycle <= cycle + 1;
      if (in_ready) sent <= sent + 1;
      if (out_valid) begin
        int block, pixel, frame;
        block = received % (M / PE);
        pixel = received / (M / PE) % (OH * OW);
        frame = received / (M / PE) / (OH * OW);
        for (int p = 0; p < PE; p++)
          if (int'($signed(out_data[p*SUM+:SUM])) != expected(frame, pixel / OW, pixel % OW, block * PE + p))
            errors <= errors + 1;
        received <= received + 1;
        if (block == M / PE - 1 && pixel == OH * OW - 1) begin
          last_cycle <= cycle;
          interval <= cycle - last_cycle;
          if (frame == 0) latency <= cycle + 1;
          if (frame == FRAMES - 1) begin
            done <= 1;
            $display("RESULT %0d interval %0d latency %0d errors %0d", ID, cycle - last_cycle, latency, errors);
          end
        end
      end
    end
  end
endmodule
