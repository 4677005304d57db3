// The inverse of a square root, one bit of it per cycle, as qat.integer defines it for group_norm and l2_norm:
// with e = floor(log4 v) and w = floor(v * 4^(23 - e)), min(floor(2^40 / floor(sqrt w)), 2^17 - 1).
module inverse_root (
    input logic clk,
    input logic start,  // takes the spread v; one that is under way is given up
    input logic [61:0] spread,
    output logic done,  // the results hold until the next start
    output logic [4:0] exponent,
    output logic [16:0] inverse
);
  localparam int SCALE = 0, ROOT = 1, DIVIDE = 2, IDLE = 3;

  logic [1:0] state;
  logic [4:0] step;
  logic [61:0] value;
  logic [23:0] root;
  logic [25:0] rest;

  // Of the root: the rest with two more bits of the value, less what one more bit would take.
  wire [25:0] wider = {rest[23:0], value[61:60]};
  wire [26:0] reduced = {1'b0, wider} - {1'b0, root, 2'b01};
  // Of the quotient: the rest with a zero, less the root.
  wire [25:0] doubled = {rest[24:0], 1'b0};
  wire [26:0] divided = {1'b0, doubled} - {3'b0, root};

  assign done = state == 2'(IDLE);

  always_ff @(posedge clk) begin
    if (start) begin
      state <= 2'(SCALE);
      value <= spread == 0 ? 62'd1 : spread;
      exponent <= 5'd30;
    end else if (state == 2'(SCALE)) begin
      step <= 5'd23;
      root <= '0;
      rest <= '0;
      if (value[61:60] == 0) begin
        value <= value << 2;
        exponent <= exponent - 5'd1;
      end else state <= 2'(ROOT);
    end else if (state == 2'(ROOT)) begin
      value <= value << 2;
      root <= {root[22:0], ~reduced[26]};
      rest <= reduced[26] ? wider : reduced[25:0];
      step <= step - 5'd1;
      if (step == 0) begin
        state <= 2'(DIVIDE);
        step <= 5'd16;
        rest <= 26'h800000;  // what 2^40 leaves after its first 24 bits
        inverse <= '0;
      end
    end else if (state == 2'(DIVIDE)) begin
      step <= step - 5'd1;
      rest <= divided[26] ? doubled : divided[25:0];
      inverse <= {inverse[15:0], ~divided[26]};
      if (step == 0) state <= 2'(IDLE);
      if (root == 24'h800000) inverse <= '1;  // 2^17 would take one bit more
    end
  end
endmodule
