// Safetensors files and folders: what is right is found, and each malformed one is refused with
// the file, the tensor and the fault.
#include "engine/model/safetensors.h"

#include <cstring>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using nlohmann::json;
using test::TempFolder;
using test::TinyTensors;
using test::WriteFile;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string File(const std::string& header, const std::string& body) {
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  return length + header + body;
}

class SafetensorsTest : public testing::Test {
 protected:
  std::string path() const { return folder_.path() + "/model.safetensors"; }
  absl::Status OpenBytes(const std::string& bytes) {
    WriteFile(path(), bytes);
    return SafetensorsFile::Open(path()).status();
  }
  // The error of a file with this header and 16 bytes of tensors.
  std::string Fault(const std::string& header) {
    const absl::Status status = OpenBytes(File(header, std::string(16, 'x')));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << header;
    EXPECT_THAT(status.message(), HasSubstr(path()));
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
    return std::string(status.message());
  }
  TempFolder folder_;
};

TEST_F(SafetensorsTest, FindsTensors) {
  // The header is not padded, so that no value is aligned.
  const std::string header =
      R"({"b":{"dtype":"F32","shape":[2,2],"data_offsets":[6,22]},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},)"
      R"("none":{"dtype":"I64","shape":[0,4],"data_offsets":[6,6]}})";
  const float values[] = {1, -2, 3, 4};
  std::string body(6, '\1');
  body.append(reinterpret_cast<const char*>(values), sizeof(values));
  WriteFile(path(), File(header, body));
  const auto file = SafetensorsFile::Open(path());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 3u);
  const StoredTensor& a = (*file)->tensors().at("a");
  EXPECT_EQ(a.dtype, DType::kBF16);
  EXPECT_THAT(a.shape, ElementsAre(3));
  EXPECT_EQ(a.bytes, 6);
  const StoredTensor& b = (*file)->tensors().at("b");
  EXPECT_THAT(b.shape, ElementsAre(2, 2));
  EXPECT_EQ(std::memcmp(b.data, values, sizeof(values)), 0);
  EXPECT_EQ((*file)->tensors().at("none").bytes, 0);
}

TEST_F(SafetensorsTest, MissingFile) {
  const absl::Status status = SafetensorsFile::Open(path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr(path()));
}

TEST_F(SafetensorsTest, NotAFile) {
  EXPECT_THAT(SafetensorsFile::Open(folder_.path()).status().message(),
              HasSubstr("not a regular file"));
}

TEST_F(SafetensorsTest, TruncatedAtEveryLength) {
  const TinyTensors tensors = {{"x", {DType::kF32, {2, 3}, std::vector<float>(6, 1.0f)}},
                               {"y", {DType::kBF16, {4}, std::vector<float>(4, 2.0f)}}};
  const std::string whole = test::SafetensorsBytes(tensors);
  EXPECT_TRUE(OpenBytes(whole).ok());
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const absl::Status status = OpenBytes(whole.substr(0, bytes));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bytes;
    EXPECT_THAT(status.message(), HasSubstr(path()));
  }
  EXPECT_THAT(OpenBytes(whole.substr(0, 5)).message(), HasSubstr("truncated: 5 bytes"));
  EXPECT_THAT(OpenBytes(whole.substr(0, 20)).message(), HasSubstr("truncated: the header ends"));
  EXPECT_THAT(OpenBytes(whole.substr(0, whole.size() - 1)).message(),
              HasSubstr("tensor y: data_offsets are [24, 32]; the file has 31 bytes of data"));
  EXPECT_THAT(OpenBytes(whole + "zz").message(), HasSubstr("2 bytes after the last tensor"));
}

TEST_F(SafetensorsTest, HeaderLength) {
  std::string bytes = File("{}", "");
  std::memset(bytes.data(), 0xFF, 8);
  EXPECT_THAT(OpenBytes(bytes).message(), HasSubstr("header of 18446744073709551615 bytes"));
  bytes = File("{}", "");
  bytes[3] = 0x40;  // 1 GiB
  EXPECT_THAT(OpenBytes(bytes).message(), HasSubstr("accepted: at most 100000000"));
}

TEST_F(SafetensorsTest, MalformedHeader) {
  EXPECT_THAT(Fault(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(Fault("{\"x\":"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Fault("[1]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(Fault("{\"\xFF\":1}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Fault(std::string(100000, '[')), HasSubstr("nested deeper than 32"));
  const std::string entry = R"("x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]})";
  EXPECT_THAT(Fault("{" + entry + "," + entry + "}"), HasSubstr("key \"x\" is given twice"));
}

TEST_F(SafetensorsTest, MalformedEntry) {
  const auto fault = [&](const std::string& entry) { return Fault("{\"x\":" + entry + "}"); };
  EXPECT_THAT(fault("3"), HasSubstr("tensor x: its header entry is not an object"));
  EXPECT_THAT(fault("{}"), HasSubstr("tensor x: dtype is not there"));
  EXPECT_THAT(fault(R"({"dtype":3})"), HasSubstr("dtype is not there, or not a string"));
  EXPECT_THAT(fault(R"({"dtype":"F16","shape":[8],"data_offsets":[0,16]})"),
              HasSubstr("dtype is F16; accepted: F32, BF16"));
  EXPECT_THAT(fault(R"({"dtype":"F32","data_offsets":[0,16]})"), HasSubstr("shape is not a list"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})"),
              HasSubstr("shape is not a list"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[4.0],"data_offsets":[0,16]})"),
              HasSubstr("shape is not a list"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]})"),
              HasSubstr("shape is not a list"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16]})"),
              HasSubstr("shape is not a list of at most 8"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[4]})"), HasSubstr("data_offsets is not a pair"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[4],"data_offsets":[16]})"),
              HasSubstr("data_offsets is not a pair"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[4],"data_offsets":[-1,15]})"),
              HasSubstr("data_offsets is not a pair"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})"),
              HasSubstr("data_offsets are [16, 0]"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[8],"data_offsets":[0,32]})"),
              HasSubstr("the file has 16 bytes of data"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[3],"data_offsets":[0,16]})"),
              HasSubstr("data_offsets span 16 bytes, but F32[3] takes 12"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]})"),
              HasSubstr("takes more than 2^63"));
  EXPECT_THAT(fault(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16],"scale":1})"),
              HasSubstr("unknown key \"scale\""));
}

TEST_F(SafetensorsTest, OverlapAndHole) {
  EXPECT_THAT(Fault(R"({"x":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
                    R"("y":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
              HasSubstr("tensor y: its data overlap"));
  EXPECT_THAT(Fault(R"({"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},)"
                    R"("y":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})"),
              HasSubstr("overlap"));
  EXPECT_THAT(Fault(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                    R"("y":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
              HasSubstr("tensor y: a hole of 4 bytes"));
  EXPECT_THAT(Fault(R"({"y":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
              HasSubstr("a hole of 8 bytes"));
}

TEST_F(SafetensorsTest, NamesAreEscapedInErrors) {
  EXPECT_THAT(Fault("{\"evil\\nname\":3}"), HasSubstr("tensor evil\\nname"));
}

class CheckpointTest : public SafetensorsTest {
 protected:
  void WriteShard(const std::string& file, const std::vector<std::string>& names) {
    TinyTensors tensors;
    for (const std::string& name : names) tensors[name] = {DType::kF32, {1}, {1.0f}};
    WriteFile(folder_.path() + "/" + file, test::SafetensorsBytes(tensors));
  }
  void WriteIndex(const json& weight_map) {
    WriteFile(folder_.path() + "/model.safetensors.index.json",
              json{{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}}.dump());
  }
  std::string Error() { return std::string(Checkpoint::Open(folder_.path()).status().message()); }
};

TEST_F(CheckpointTest, OneFile) {
  WriteShard("model.safetensors", {"a", "b"});
  WriteShard("other.safetensors", {"c"});
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_EQ(checkpoint->file_count(), 1);
}

// The files are those of the index, whatever they are called.
TEST_F(CheckpointTest, ShardsByIndex) {
  WriteShard("model-1.safetensors", {"a", "b"});
  WriteShard("mtp.safetensors", {"c"});
  WriteShard("unnamed.safetensors", {"d"});
  WriteIndex(
      {{"a", "model-1.safetensors"}, {"b", "model-1.safetensors"}, {"c", "mtp.safetensors"}});
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  EXPECT_EQ(checkpoint->file_count(), 2);
}

TEST_F(CheckpointTest, EmptyFolder) {
  const absl::Status status = Checkpoint::Open(folder_.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("model.safetensors"));
}

TEST_F(CheckpointTest, MissingShard) {
  WriteShard("model-1.safetensors", {"a"});
  WriteIndex({{"a", "model-1.safetensors"}, {"b", "model-2.safetensors"}});
  const absl::Status status = Checkpoint::Open(folder_.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("model-2.safetensors"));
}

TEST_F(CheckpointTest, FilesOutsideTheFolder) {
  for (const char* file :
       {"/etc/x.safetensors", "../x.safetensors", "a/b.safetensors", "..", "", "x.bin"}) {
    WriteIndex({{"a", file}});
    EXPECT_THAT(Error(), AllOf(HasSubstr("weight_map of a is \"" + std::string(file) + "\""),
                               HasSubstr("in the same folder")));
  }
}

TEST_F(CheckpointTest, IndexAndFilesDisagree) {
  WriteShard("model-1.safetensors", {"a", "b"});
  WriteShard("model-2.safetensors", {"c"});
  WriteIndex({{"a", "model-1.safetensors"}, {"c", "model-2.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("tensor b: is in model-1.safetensors, the index says nothing"));
  WriteIndex(
      {{"a", "model-1.safetensors"}, {"b", "model-2.safetensors"}, {"c", "model-2.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("tensor b: is in model-1.safetensors, the index says model-2"));
  WriteIndex({{"a", "model-1.safetensors"},
              {"b", "model-1.safetensors"},
              {"c", "model-2.safetensors"},
              {"d", "model-2.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("tensor d is not in model-2.safetensors"));
}

TEST_F(CheckpointTest, MalformedIndex) {
  const std::string index = folder_.path() + "/model.safetensors.index.json";
  for (const char* text :
       {"", "{}", "{\"weight_map\": {}}", "{\"weight_map\": []}", "[]",
        "{\"weight_map\": {\"a\": 3}}",
        "{\"weight_map\": {\"a\": \"x.safetensors\", \"a\": \"y.safetensors\"}}"}) {
    WriteFile(index, text);
    EXPECT_EQ(Checkpoint::Open(folder_.path()).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(Error(), HasSubstr(index));
  }
}

}  // namespace
}  // namespace glm::engine
