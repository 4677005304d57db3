// Compares an inverse_root and a norm_lane with the vectors of a file; counts wrong results and the longest root.
module top (
    input logic clk,
    output logic done
);
  localparam int CODE = 17;
  localparam int COUNT = 31;
  localparam int WIDTH = 62 + COUNT + CODE + (COUNT + CODE) + 5 + 17 + 32;

  logic [WIDTH-1:0] vectors[`VECTORS];
  logic [61:0] spread;
  logic [COUNT-1:0] count;
  logic signed [CODE-1:0] code;
  logic signed [COUNT+CODE-1:0] total;
  logic [4:0] want_exponent, exponent;
  logic [16:0] want_inverse, inverse;
  logic signed [31:0] want_value, value;
  logic start, found;
  int vector, waited, errors, longest;

  inverse_root root (.clk(clk), .start(start), .spread(spread), .done(found), .exponent(exponent), .inverse(inverse));
  norm_lane #(.CODE(CODE), .COUNT(COUNT)) lane (.*);

  assign {spread, count, code, total, want_exponent, want_inverse, want_value} = vectors[vector];
  assign start = waited == 0;

  initial begin
    $readmemh(`FILE, vectors);
    vector = 0;
    waited = 0;
    errors = 0;
    longest = 0;
    done = 0;
  end

  wire wrong = exponent != want_exponent || inverse != want_inverse || value != want_value;
  int since;
  always_ff @(posedge clk) begin
    waited <= waited + 1;
    since <= found && !start ? since + 1 : 0;
    if (!found || start) longest <= waited > longest ? waited : longest;
    if (since == 5) begin  // the lane has seen the inverse
      errors <= errors + 32'(wrong);
      waited <= 0;
      since <= 0;
      if (vector == `VECTORS - 1) begin
        $display("RESULT vectors %0d errors %0d longest %0d", `VECTORS, errors + 32'(wrong), longest + 1);
        done <= 1;
        $finish;
      end else vector <= vector + 1;
    end
  end
endmodule
