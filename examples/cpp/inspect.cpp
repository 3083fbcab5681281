// Inspects images with an exported file, using libtorch alone: prints the decisions and writes the codes.
//
//     inspect inspector.pt codes.csv IMAGE...
//
// IMAGE is an 8-bit PNG or JPEG, or raw grey pixels as a binary PGM ("P5 width height 255", then the bytes). Grey PNG and
// PGM give exactly the pixels that `steel inspect` reads. JPEG decoders other than OpenCV's can give slightly different
// pixels.
#include <torch/script.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#if __has_include(<png.h>)
#include <png.h>
#define HAS_PNG
#endif
#if __has_include(<jpeglib.h>)
#include <jpeglib.h>
#define HAS_JPEG
#endif

using torch::Tensor;
using torch::jit::IValue;
using torch::jit::Module;

// A problem that the user can fix, described in one sentence.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

static std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw InputError("cannot read " + path + "; name an existing file");
  return {std::istreambuf_iterator<char>(file), {}};
}

// Returns uint8 (1, 1, H, W).
static Tensor to_tensor(std::vector<uint8_t>& pixels, int64_t height, int64_t width) {
  return torch::from_blob(pixels.data(), {1, 1, height, width}, torch::kUInt8).clone();
}

static Tensor read_pgm(const std::string& path, const std::string& bytes) {
  std::istringstream stream(bytes);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  stream >> magic >> width >> height >> largest;
  stream.get();  // the whitespace before the pixels
  if (!stream || width < 1 || height < 1 || largest != 255)
    throw InputError(path + " is not an 8-bit PGM; its header must be P5 width height 255");
  const int64_t start = stream.tellg(), missing = start + width * height - int64_t(bytes.size());
  if (missing > 0) throw InputError(path + " is truncated: " + std::to_string(missing) + " pixels are missing; copy it again");
  std::vector<uint8_t> pixels(bytes.begin() + start, bytes.begin() + start + width * height);
  return to_tensor(pixels, height, width);
}

#ifdef HAS_PNG
static Tensor read_png(const std::string& path, const std::string& bytes) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_memory(&image, bytes.data(), bytes.size()))
    throw InputError(path + " is not a readable PNG (" + image.message + "); leave it out");
  if (image.format & PNG_FORMAT_FLAG_LINEAR) throw InputError(path + " has more than 8 bits per channel; convert it to 8 bits");
  // The inspector converts colour images to luma, as defined for JPEG.
  const bool colour = image.format & PNG_FORMAT_FLAG_COLOR;
  image.format = colour ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(image));
  if (!png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr))
    throw InputError(path + " is damaged (" + image.message + "); copy it again or leave it out");
  if (!colour) return to_tensor(pixels, image.height, image.width);
  const auto rgb = torch::from_blob(pixels.data(), {1, image.height, image.width, 3}, torch::kUInt8);
  return rgb.permute({0, 3, 1, 2}).contiguous();
}
#endif

#ifdef HAS_JPEG
static Tensor read_jpeg(const std::string& path, const std::string& bytes) {
  jpeg_decompress_struct decoder;
  jpeg_error_mgr errors;
  decoder.err = jpeg_std_error(&errors);
  errors.error_exit = [](j_common_ptr info) {
    char reason[JMSG_LENGTH_MAX];
    info->err->format_message(info, reason);
    throw InputError(std::string("an image is not a readable JPEG (") + reason + "); leave it out");
  };
  jpeg_create_decompress(&decoder);
  jpeg_mem_src(&decoder, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  jpeg_read_header(&decoder, TRUE);
  decoder.out_color_space = JCS_GRAYSCALE;
  jpeg_start_decompress(&decoder);
  std::vector<uint8_t> pixels(size_t(decoder.output_width) * decoder.output_height);
  while (decoder.output_scanline < decoder.output_height) {
    JSAMPROW row = pixels.data() + size_t(decoder.output_scanline) * decoder.output_width;
    jpeg_read_scanlines(&decoder, &row, 1);
  }
  const int64_t height = decoder.output_height, width = decoder.output_width;
  const bool truncated = errors.num_warnings > 0;
  jpeg_destroy_decompress(&decoder);
  if (truncated) throw InputError(path + " is truncated or damaged; copy it again or leave it out");
  return to_tensor(pixels, height, width);
}
#endif

static Tensor read_image(const std::string& path) {
  const std::string bytes = read_bytes(path);
  if (bytes.compare(0, 2, "P5") == 0) return read_pgm(path, bytes);
#ifdef HAS_PNG
  if (bytes.compare(0, 4, "\x89PNG") == 0) return read_png(path, bytes);
#endif
#ifdef HAS_JPEG
  if (bytes.compare(0, 2, "\xff\xd8") == 0) return read_jpeg(path, bytes);
#endif
  throw InputError(path + " is not an image that this program can read; give an 8-bit PNG, JPEG or PGM");
}

// Loads and freezes the inspector, runs its self-test and warms it up, like `bundle.read` in Python.
static Module load(const std::string& path, torch::Device device) {
  read_bytes(path);
  torch::jit::ExtraFilesMap extra{{"inspector.json", ""}};
  Module module;
  try {
    module = torch::jit::load(path, device, extra);
  } catch (const c10::Error&) {
    throw InputError(path + " is not an exported inspector or is damaged; `steel export` writes one");
  }
  if (extra["inspector.json"].empty() || !module.find_method("self_test"))
    throw InputError(path + " is a TorchScript program, but not an inspector; `steel export` writes one");
  module.eval();
  module = torch::jit::freeze(module, std::vector<std::string>{
      "probabilities", "decide", "point", "self_test", "example", "flips", "gate", "label", "pixel", "smallest_spot",
      "smallest_area", "temperature", "knots", "values"});
  const IValue example = module.attr("example");
  const IValue probabilities = module.get_method("probabilities")({example});
  const std::string fault = module.get_method("self_test")({probabilities}).toStringRef();
  if (!fault.empty()) throw InputError(path + " failed its self-test: " + fault + "; export it again");
  Tensor gate = module.attr("gate").toTensor();
  const Tensor kept = gate.clone();
  gate.zero_();
  for (int i = 0; i < 2; ++i) module.forward({example});
  gate.copy_(kept);
  return module;
}

// Returns "start length start length ...", with pixels numbered from 1, column by column.
static std::string encode(const Tensor& mask) {
  const Tensor columns = mask.t().contiguous();
  const bool* pixels = columns.data_ptr<bool>();
  std::ostringstream code;
  for (int64_t i = 0, n = columns.numel(); i < n; ++i) {
    if (!pixels[i]) continue;
    const int64_t start = i;
    while (i < n && pixels[i]) ++i;
    code << (code.tellp() > 0 ? " " : "") << start + 1 << ' ' << i - start;
  }
  return code.str();
}

static int run(const std::vector<std::string>& args) {
  if (args.size() < 3) throw InputError("expected: inspect inspector.pt codes.csv IMAGE...");
  const torch::Device device = at::hasCUDA() ? torch::kCUDA : torch::kCPU;
  c10::InferenceMode guard;
  Module module = load(args[0], device);
  std::ostringstream codes("ImageId,ClassId,EncodedPixels\n", std::ios::ate);
  const double gate = module.attr("gate").toTensor().item<double>();
  for (size_t k = 2; k < args.size(); ++k) {
    const auto start = std::chrono::steady_clock::now();
    const auto found = module.forward({read_image(args[k]).to(device)}).toTuple()->elements();
    const std::string name = std::filesystem::path(args[k]).filename();
    const double probability = found[0].toTensor().item<double>();
    const Tensor masks = found[2].toTensor()[0].cpu(), areas = found[3].toTensor()[0].cpu();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    std::printf("%s: %s, p=%.6f, %.1f ms\n", name.c_str(), probability >= gate ? "defective" : "clean", probability, took.count());
    for (int64_t c = 0; c < masks.size(0); ++c) {
      if (areas[c].item<int64_t>()) std::printf("  class %ld: %ld pixels\n", c + 1, areas[c].item<int64_t>());
      codes << name << ',' << c + 1 << ',' << encode(masks[c]) << '\n';
    }
  }
  // The file gets its final name once it is complete.
  std::ofstream(args[1] + ".unfinished") << codes.str();
  std::filesystem::rename(args[1] + ".unfinished", args[1]);
  return 0;
}

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    const std::string what = error.what();
    std::cerr << "inspect: " << what.substr(0, what.find('\n')) << std::endl;
    return 2;
  }
}
