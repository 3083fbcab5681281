// Inspects images with an exported file, using libtorch alone: prints the decisions and writes the codes.
//
//     inspect [--digest SHA256] inspector.pt codes.csv IMAGE...
//
// IMAGE is an 8-bit PNG or JPEG, or raw grey pixels as a binary PGM ("P5 width height 255", then the bytes). Grey PNG and
// PGM give exactly the pixels that `steel inspect` reads. JPEG decoders other than OpenCV's can give slightly different
// pixels.
#include <caffe2/serialize/inline_container.h>
#include <torch/script.h>

#include <algorithm>
#include <bit>
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

// Returns the SHA-256 of the first `size` bytes in hexadecimal (FIPS 180-4).
static std::string sha256(const std::string& bytes, size_t size) {
  // The fractional parts of the roots of the first primes, in integers so that no rounding matters.
  const auto root = [](unsigned prime, int power) {  // power 2 or 3
    __extension__ typedef unsigned __int128 Wide;
    uint64_t found = 0;
    for (int bit = 35; bit >= 0; --bit) {
      const Wide x = found | uint64_t(1) << bit, y = power == 2 ? x * x : x * x * x;
      if (y <= Wide(prime) << (32 * power)) found = uint64_t(x);
    }
    return uint32_t(found);
  };
  uint32_t constants[64], state[8];
  for (unsigned n = 0, prime = 2; n < 64; ++prime) {
    bool is_prime = true;
    for (unsigned d = 2; d * d <= prime; ++d) is_prime = is_prime && prime % d;
    if (!is_prime) continue;
    if (n < 8) state[n] = root(prime, 2);
    constants[n++] = root(prime, 3);
  }
  std::string tail = bytes.substr(size / 64 * 64, size % 64) + '\x80';
  tail.resize((tail.size() + 8 + 63) / 64 * 64);
  for (int i = 0; i < 8; ++i) tail[tail.size() - 1 - i] = char(uint64_t(size) * 8 >> 8 * i);
  for (size_t start = 0, whole = size / 64 * 64; start < whole + tail.size(); start += 64) {
    const auto* block = reinterpret_cast<const uint8_t*>(start < whole ? &bytes[start] : &tail[start - whole]);
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; ++i)
      w[i] = uint32_t(block[4 * i]) << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; ++i)
      w[i] = w[i - 16] + (std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
             (std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ w[i - 2] >> 10);
    std::copy(state, state + 8, s);
    for (int i = 0; i < 64; ++i) {
      const uint32_t one = s[7] + (std::rotr(s[4], 6) ^ std::rotr(s[4], 11) ^ std::rotr(s[4], 25)) +
                           ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
      const uint32_t two = (std::rotr(s[0], 2) ^ std::rotr(s[0], 13) ^ std::rotr(s[0], 22)) +
                           ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      std::copy_backward(s, s + 7, s + 8);
      s[4] += one;
      s[0] = one + two;
    }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  }
  char digits[65];
  for (int i = 0; i < 8; ++i) std::snprintf(digits + 8 * i, 9, "%08x", state[i]);
  return digits;
}

// Checks the checksum of every record, which torch does not. Sizes and positions are those of the ZIP directory.
static void check_records(const std::string& path, const std::string& bytes) {
  const auto damaged = InputError(path + " is not an exported inspector or is damaged; `steel export` writes one");
  const auto number = [&](size_t position, int size) {
    if (position + size > bytes.size()) throw damaged;
    uint32_t value = 0;
    for (int i = size - 1; i >= 0; --i) value = value << 8 | uint8_t(bytes[position + i]);
    return value;
  };
  const size_t end = bytes.rfind("PK\5\6");
  if (end == std::string::npos) throw damaged;
  std::istringstream stream(bytes);
  caffe2::serialize::PyTorchStreamReader reader(&stream);
  size_t entry = number(end + 16, 4);
  for (unsigned left = number(end + 10, 2); left > 0; --left) {
    const unsigned length = number(entry + 28, 2);
    if (number(entry, 4) != 0x02014b50 || entry + 46 + length > bytes.size()) throw damaged;
    const std::string name = bytes.substr(entry + 46, length);  // "archive/data.pkl"; the reader leaves out "archive/"
    const auto [data, size] = reader.getRecord(name.substr(name.find('/') + 1));
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; ++i) {
      crc ^= static_cast<const uint8_t*>(data.get())[i];
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    if (~crc != number(entry + 16, 4)) throw damaged;
    entry += 46 + length + number(entry + 30, 2) + number(entry + 32, 2);
  }
}

// Checks that no byte of the file has changed since `steel export` wrote it, like `archive` in Python. Returns whether
// the file stores a digest; files of earlier versions do not.
static bool check_bytes(const std::string& path, const std::string& bytes, const std::string& digest) {
  const std::string whole = sha256(bytes, bytes.size()), name = "steel sha256 ";
  if (!digest.empty() && digest != whole) throw InputError(path + " has the SHA-256 " + whole + "; use the right file");
  const size_t content = bytes.size() < 64 ? 0 : bytes.size() - 64;
  if (content < name.size() || bytes.compare(content - name.size(), name.size(), name) != 0) {
    check_records(path, bytes);
    return false;
  }
  if (bytes.substr(content) != sha256(bytes, content))
    throw InputError(path + " is damaged: its content does not match the digest stored in it; copy it again");
  return true;
}

// Loads and freezes the inspector, runs its self-test and warms it up, like `bundle.read` in Python.
static Module load(const std::string& path, torch::Device device, const std::string& digest) {
  torch::jit::ExtraFilesMap extra{{"inspector.json", ""}};
  Module module;
  bool is_sealed = false;
  try {
    const std::string bytes = read_bytes(path);
    is_sealed = check_bytes(path, bytes, digest);
    std::istringstream stream(bytes);
    module = torch::jit::load(stream, device, extra);
  } catch (const c10::Error&) {
    throw InputError(path + " is not an exported inspector or is damaged; `steel export` writes one");
  }
  if (extra["inspector.json"].empty() || !module.find_method("self_test"))
    throw InputError(path + " is a TorchScript program, but not an inspector; `steel export` writes one");
  // Files that were written with a digest say so in their metadata.
  if (!is_sealed && extra["inspector.json"].find("\"sealed\": true") != std::string::npos)
    throw InputError(path + " is damaged: the digest at its end is missing; copy it again");
  if (!is_sealed) std::cerr << "inspect: " << path << " carries no digest of its content; export it again" << std::endl;
  module.eval();
  std::vector<std::string> attributes{
      "probabilities", "decide", "point", "self_test", "example", "flips", "gate", "label", "pixel", "smallest_spot",
      "smallest_area", "temperature", "knots", "values"};
  const bool has_novelty = module.find_method("test_novelty").has_value();
  if (has_novelty) attributes.push_back("test_novelty");
  module = torch::jit::freeze(module, attributes);
  const IValue example = module.attr("example");
  const IValue probabilities = module.get_method("probabilities")({example});
  std::string fault = module.get_method("self_test")({probabilities}).toStringRef();
  if (fault.empty() && has_novelty) fault = module.get_method("test_novelty")({}).toStringRef();
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

static int run(std::vector<std::string> args) {
  std::string digest;
  if (args.size() > 1 && args[0] == "--digest") {
    digest = args[1];
    args.erase(args.begin(), args.begin() + 2);
  }
  if (args.size() < 3) throw InputError("expected: inspect [--digest SHA256] inspector.pt codes.csv IMAGE...");
  const torch::Device device = at::hasCUDA() ? torch::kCUDA : torch::kCPU;
  c10::InferenceMode guard;
  Module module = load(args[0], device, digest);
  std::ostringstream codes("ImageId,ClassId,EncodedPixels\n", std::ios::ate);
  const Tensor gate = module.attr("gate").toTensor();
  for (size_t k = 2; k < args.size(); ++k) {
    const auto start = std::chrono::steady_clock::now();
    const auto found = module.forward({read_image(args[k]).to(device)}).toTuple()->elements();
    const std::string name = std::filesystem::path(args[k]).filename();
    const double probability = found[0].toTensor().item<double>();
    const bool is_defective = (found[0].toTensor() >= gate).item<bool>();  // in the precision that the inspector uses
    const Tensor masks = found[2].toTensor()[0].cpu(), areas = found[3].toTensor()[0].cpu();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    std::printf("%s: %s, p=%.6f, %.1f ms\n", name.c_str(), is_defective ? "defective" : "clean", probability, took.count());
    for (int64_t c = 0; c < masks.size(0); ++c) {
      if (areas[c].item<int64_t>()) std::printf("  class %ld: %ld pixels\n", c + 1, areas[c].item<int64_t>());
      codes << name << ',' << c + 1 << ',' << encode(masks[c]) << '\n';
    }
    // Files exported with --novelty return two more values.
    const double novelty = found.size() > 4 ? found[4].toTensor().item<double>() : 0;
    if (novelty >= 1 && !areas.any().item<bool>()) std::printf("  unlike any clean steel: novelty %.2f\n", novelty);
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
