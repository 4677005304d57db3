// One normalised value per cycle: ((count * code - total) * inverse + 2^(e+2)) >> (e + 3), as in qat.integer.
module norm_lane #(
    parameter int CODE = 8,  // bits of a code, signed
    parameter int COUNT = 17  // bits of the number of values in a group
) (
    input logic clk,
    input logic [COUNT-1:0] count,
    input logic signed [CODE-1:0] code,
    input logic signed [COUNT+CODE-1:0] total,
    input logic [4:0] exponent,
    input logic [16:0] inverse,
    output logic signed [31:0] value  // four cycles later
);
  localparam int CENTRED = COUNT + CODE + 1;
  localparam int PRODUCT = CENTRED + 18;

  logic signed [CENTRED-1:0] scaled, centred;
  logic signed [COUNT+CODE-1:0] subtracted;
  logic signed [PRODUCT-1:0] product;

  wire signed [PRODUCT:0] rounded = {product[PRODUCT-1], product} + ((PRODUCT + 1)'(4) <<< exponent);

  always_ff @(posedge clk) begin
    scaled <= $signed({1'b0, count}) * code;
    subtracted <= total;
    centred <= scaled - subtracted;
    product <= centred * $signed({1'b0, inverse});
    value <= 32'(rounded >>> (6'(exponent) + 6'd3));
  end
endmodule
